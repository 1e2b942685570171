"""The figures of stage 2, RL: recovery beside the baselines, advantages, rewards, rotation."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oodlib.analysis.claims import PAPER
from oodlib.analysis.stats import bands, over_seeds
from oodlib.plots import draw
from oodlib.plots.sft import paper_curve
from oodlib.plots.style import COLOURS, GREY, WIDTH, colour, in_order, label
from oodlib.results import judged_by
from oodlib.tasks import Splits

MARKS = "s^vPXo"  # of baselines


def recovery(measurements: pd.DataFrame, splits: Splits) -> Figure:
    """Accuracy of SFT checkpoints, and after RL and each baseline from there, by split, the headline's large.

    The paper's OOD accuracy stands beside it. Of a run that is judged by reading (`results.judged_by`), that in place
    of accuracy.
    """
    metric = judged_by(measurements, splits)
    what = "accuracy" if metric == "accuracy" else "answers that name the right numbers"
    accuracy = measurements[measurements["metric"] == metric]
    rl = accuracy[accuracy["stage"] == "rl"]
    rl = rl[rl["step"] == rl["step"].max()]
    sft = accuracy[(accuracy["stage"] == "sft") & (accuracy["step"] > 0) & accuracy["seed"].isin(rl["seed"])]
    small = [split for split in splits if split != splits.headline]
    columns = 2 * max(2, len(small))  # of which a small panel takes two
    figure = plt.figure(figsize=(WIDTH, 7.4), layout="constrained")
    places = figure.add_gridspec(2, columns, height_ratios=(1.35, 1))
    share = round(0.62 * columns)
    here, paper = figure.add_subplot(places[0, :share]), figure.add_subplot(places[0, share:])
    panels = {splits.headline: here}
    panels |= {split: figure.add_subplot(places[1, 2 * i : 2 * i + 2]) for i, split in enumerate(small)}
    arms, starts = in_order(rl["arm"])[::-1], np.sort(rl["from_step"].unique())
    gap = min(0.09, 0.6 * np.diff(np.log(starts)).min(initial=1) / len(arms))  # side by side, to be told apart
    for split, axis in panels.items():
        size = 7 if axis is here else 4
        draw.line(axis, bands(sft[sft["split"] == split.name]), "sft", size=4)
        for i, arm in enumerate(arms):
            data = bands(rl[(rl["split"] == split.name) & (rl["arm"] == arm)])
            look = {"markersize": size, "linewidth": 1.2, "label": label(arm)}
            mark, beside = "D:" if arm == "rl" else MARKS[i % len(MARKS)], np.exp(gap * (i - (len(arms) - 1) / 2))
            draw.bars(axis, data, arm, mark, beside, **look)
        draw.step_axis(axis, starts, first=0.85 * sft["step"].min(), last=1.3 * sft["step"].max())
        axis.set(title=split.label, xlabel="from SFT step (log scale)", ylim=(0, None))
        axis.set_ylim(top=max(0.05, axis.get_ylim()[1]) * 1.05)
    here.set(title=f"{splits.headline.label}: {what}", ylabel="share of all problems of the split")
    for series in ("sft", "rl"):
        draw.line(paper, paper_curve(series), series)
    window = PAPER["rl_window_llama_steps"]
    paper.axvspan(*window, color=COLOURS["paper"], alpha=0.08, linewidth=0)
    paper.set(title="The paper: LLaMA, OOD", xlabel="from SFT step", ylim=(0, 0.3))
    paper.text(np.mean(window), 0.29, "the paper's window", ha="center", va="top", fontsize=10, color=COLOURS["paper"])
    for axis in (*panels.values(), paper):
        draw.percent(axis.yaxis)
    draw.legend_below(figure, here, 3)
    return figure


def advantages(rollouts: pd.DataFrame) -> Figure:
    """How the advantages spread in RL from each SFT checkpoint (C6)."""
    grid = sns.displot(
        rollouts, x="advantage", col="from_step", col_wrap=3, height=3, aspect=1.05, bins=26, stat="proportion",
        common_norm=False, color=COLOURS["rl"], linewidth=0,
    )  # fmt: skip
    grid.set_titles("from step {col_name}").set_axis_labels("advantage", "share of samples")
    for start, axis in grid.axes_dict.items():
        rows = rollouts[rollouts["from_step"] == start]
        skewness = rows.groupby("seed", observed=True)["advantage"].skew().abs().mean()
        right = (rows["outcome"] == "correct").mean()
        axis.text(0.04, 0.96, f"correct {right:.0%}\n|skewness| {skewness:.2f}", transform=axis.transAxes, va="top")
        axis.axvline(0, ymax=0.75, color=GREY, linewidth=0.8)  # below the text
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    draw.percent(axis.yaxis)
    return grid.figure


def rewards(rollouts: pd.DataFrame) -> Figure:
    """Mean training reward against RL update, for each start, in blocks of five updates with a 95 % band.

    The band is over seeds; over groups of answers to one hand, where there is one seed.
    """
    unit = ["seed"] if rollouts["seed"].nunique() > 1 else ["seed", "group"]
    blocks = rollouts.assign(update=rollouts["update"] // 5 * 5 + 2)
    means = blocks.groupby(["from_step", "update", *unit], observed=True)["reward"].mean().reset_index()
    means["from step"] = means["from_step"].astype(str)
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    look = {"hue": "from step", "palette": "viridis_r", "style": "from step", "dashes": False, "markers": True}
    sns.lineplot(means, x="update", y="reward", errorbar=("se", 1.96), ax=axis, **look)
    axis.set(xlabel="RL update", ylabel="reward (5 = correct)", title="Training reward, means of 5 batches")
    return figure


def rotation_and_recovery(turned: pd.DataFrame, splits: Splits) -> Figure:
    """RL and baselines: how far each turned the directions of its start, against the headline accuracy it gained.

    turned: `stats.rotation_and_accuracy(measurements, "rl", splits)`.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 4.2), layout="constrained")
    marks = dict(zip(sorted(turned["from_step"].unique()), "osD^v<>P" * 4, strict=False))
    for (arm, start), rows in turned.groupby(["arm", "from_step"], observed=True):
        angle, gain = over_seeds(np.degrees(rows["rotation"])), over_seeds(100 * rows["headline"])
        draw.point(axis, angle, gain, colour(arm), marks[start])
    axis.axhline(0, color=GREY, linestyle=":", linewidth=1.2)
    unit = "mean principal angle from the start, leading 20 % (°)"
    axis.set(xlabel=unit, ylabel=f"{splits.headline.label} accuracy gained (points)", xlim=(0, None))
    arms = [Line2D([], [], color=colour(arm), linewidth=5, label=label(arm)) for arm in in_order(turned["arm"])]
    starts = [Line2D([], [], color=GREY, ls="", marker=m, ms=8, label=f"from step {s}") for s, m in marks.items()]
    figure.legend(handles=arms + starts, loc="outside right center")
    return figure
