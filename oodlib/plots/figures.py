"""The figures. Each is drawn from a run's tables alone, so that it can be drawn again without training."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from oodlib.analysis.claims import PAPER, Claim, in_unit, interval
from oodlib.analysis.stats import bands
from oodlib.plots.spectral import (
    rotation_and_accuracy,
    rotation_and_recovery,
    rotation_map,
    surgery,
    turned_back,
    turning,
    value_change,
)
from oodlib.plots.style import (
    COLOURS,
    NAMES,
    OUTCOME_COLOURS,
    VERDICT_COLOURS,
    WIDTH,
    draw_line,
    mark_peak,
    sft_rows,
    smoothed,
    step_axis,
    style,
    wilson_band,
)
from oodlib.tasks import OUTCOMES

__all__ = [
    "VERDICT_COLOURS",
    "accuracy_curve",
    "advantages",
    "losses",
    "outcomes",
    "recovery",
    "rewards",
    "rotation_and_accuracy",
    "rotation_and_recovery",
    "rotation_map",
    "scorecard",
    "style",
    "surgery",
    "turned_back",
    "turning",
    "value_change",
]


def accuracy_curve(measurements: pd.DataFrame) -> Figure:
    """ID and OOD accuracy against SFT step, the OOD peak marked; the paper's LLaMA beside it."""
    data = bands(sft_rows(measurements, "accuracy"))
    figure, (ours, theirs) = plt.subplots(1, 2, figsize=(WIDTH, 4), width_ratios=(1.4, 1), layout="constrained")
    for split in ("id", "ood"):
        draw_line(ours, data[data["split"] == split], split)
    ood = data[data["split"] == "ood"].sort_values("step")
    peak = ood.loc[ood["mean"].idxmax()]
    step_axis(ours, ood["step"])
    mark_peak(ours, peak["step"], f"OOD peak: {peak['mean']:.1%}\nat step {peak['step']:.0f}")
    ours.set(ylabel="accuracy on all hands of the split", title="This run", ylim=(0, 1))
    figure.legend(*ours.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    share = np.array(curve["sft"]) / 100
    theirs.plot(curve["step"], share, "o-", color=COLOURS["ood"], markersize=5)
    low, high = wilson_band(share, 234)
    theirs.fill_between(curve["step"], low, high, color=COLOURS["ood"], alpha=0.15, linewidth=0)
    best = int(np.argmax(share))
    theirs.axvline(curve["step"][best], color="#555555", linestyle=":")
    theirs.set(xlabel="SFT step (234 hands, one run)", ylim=(0, 0.3), title="The paper: LLaMA-3.2-11B")
    for axis in (ours, theirs):
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def losses(measurements: pd.DataFrame, hands: pd.DataFrame) -> Figure:
    """Training, ID and OOD loss against step, the OOD accuracy peak marked: does a loss show it (C2)?"""
    data = sft_rows(measurements, "loss")
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    train = data[data["split"] == "train"].groupby("step")["value"].mean()
    axis.plot(train.index, train, color=COLOURS["train"], linewidth=0.6, alpha=0.3)
    label = "training (each batch, and the mean from 2/3 to 4/3 of a step)"
    axis.plot(train.index, smoothed(train), color=COLOURS["train"], linewidth=1.2, label=label)
    tested = bands(data[data["split"] != "train"], shares=False)
    if measurements["seed"].nunique() == 1:  # one seed: the band is over hands
        spread = hands[hands["stage"] == "sft"].groupby(["split", "step"], observed=True)["loss"].sem().rename("sem")
        tested = tested.merge(spread.reset_index().astype({"split": str}), on=["split", "step"])
        tested["low"], tested["high"] = tested["mean"] - 1.96 * tested["sem"], tested["mean"] + 1.96 * tested["sem"]
    for split in ("id", "ood"):
        draw_line(axis, tested[tested["split"] == split], split, label=f"{NAMES[split]} test")
    accuracy = bands(sft_rows(measurements, "accuracy").query("split == 'ood'"))
    step_axis(axis, accuracy["step"])
    mark_peak(axis, accuracy.loc[accuracy["mean"].idxmax(), "step"], "OOD accuracy\npeak")
    axis.set(ylabel="loss (nats a token)", title="Losses through SFT", yscale="log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    axis.tick_params(axis="y", which="minor", labelsize=10)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def outcomes(measurements: pd.DataFrame) -> Figure:
    """What the answers are, by kind, against step, for both splits (C3)."""
    metrics = ["accuracy", *OUTCOMES[1:]]
    data = measurements[(measurements["stage"] == "sft") & measurements["metric"].isin(metrics)]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("id", "ood"), strict=True):
        table = data[data["split"] == split].pivot_table(index="step", columns="metric", values="value")[metrics]
        axis.stackplot(
            table.index,
            table.T.to_numpy(),
            labels=["correct", *(m.replace("_", " ") for m in metrics[1:])],
            colors=list(OUTCOME_COLOURS.values()),
        )
        step_axis(axis, table.index)
        axis.set(title=f"{NAMES[split]} answers", ylim=(0, 1))
        axis.grid(False)
    axes[0].set_ylabel("share of all hands")
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def recovery(measurements: pd.DataFrame) -> Figure:
    """OOD (and ID) accuracy of SFT checkpoints, and after RL and each control from there; the paper's beside it."""
    accuracy = measurements[measurements["metric"] == "accuracy"]
    rl = accuracy[accuracy["stage"] == "rl"].assign(step=lambda f: f["from_step"])
    sft = accuracy[(accuracy["stage"] == "sft") & (accuracy["step"] > 0)]
    figure, ((ours, theirs), (held, key)) = plt.subplots(2, 2, figsize=(WIDTH, 7), layout="constrained")
    for axis, split in ((ours, "ood"), (held, "id")):
        draw_line(axis, bands(sft[sft["split"] == split]), "sft", markersize=4)
        arms = [a for a in ("sft_continued", "rejection_sampling", "rl") if a in set(rl["arm"])]
        for i, arm in enumerate(arms):
            mine = bands(rl[(rl["split"] == split) & (rl["arm"] == arm)]).sort_values("step")
            shift = np.exp(0.09 * (i - 1))  # side by side, so that the intervals can be told apart
            axis.errorbar(
                mine["step"] * shift,
                mine["mean"],
                [mine["mean"] - mine["low"], mine["high"] - mine["mean"]],
                fmt="D" if arm == "rl" else "s",
                color=COLOURS[arm],
                label=NAMES[arm],
                markersize=7,
                capsize=3,
                linestyle=":",
                linewidth=1.2,
            )
        step_axis(axis, rl["step"].unique(), first=0.85 * sft["step"].min(), last=1.3 * sft["step"].max())
        axis.set(title=f"{NAMES[split]} accuracy", xlabel="SFT step from which it starts", ylim=(0, None))
        axis.set_ylabel(f"accuracy on all {NAMES[split]} hands")
    ours.set_ylim(top=max(0.05, ours.get_ylim()[1]) * 1.05)
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    for name, colour, label in (("sft", "sft", "SFT checkpoint"), ("rl_from_step", "rl", "after RL")):
        share = np.array(curve[name]) / 100
        low, high = wilson_band(share, 234)
        theirs.plot(curve["step"], share, "o-", color=COLOURS[colour], label=label, markersize=4)
        theirs.fill_between(curve["step"], low, high, color=COLOURS[colour], alpha=0.12, linewidth=0)
    window = PAPER["rl_window_llama_steps"]
    theirs.axvspan(*window, color=COLOURS["paper"], alpha=0.08, linewidth=0)
    theirs.set(title="The paper: LLaMA-3.2-11B, OOD accuracy", xlabel="SFT step from which it starts", ylim=(0, 0.3))
    theirs.text(np.mean(window), 0.29, "the paper's window", ha="center", va="top", fontsize=10, color=COLOURS["paper"])
    for axis in (ours, theirs, held):
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    key.axis("off")
    key.legend(*ours.get_legend_handles_labels(), loc="center left", title="Bands and bars: 95 %", alignment="left")
    return figure


def advantages(rollouts: pd.DataFrame) -> Figure:
    """How the advantages spread in RL from each SFT checkpoint (C6)."""
    starts = sorted(rollouts["from_step"].unique())
    columns = min(len(starts), 3)
    rows = -(-len(starts) // columns)
    size = (min(WIDTH, 4.6 * columns), 3.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[len(starts) :]:
        axis.set_axis_off()
    edge = float(np.abs(rollouts["advantage"]).max()) + 1e-6
    bins = np.linspace(-edge, edge, 26)
    for axis, start in zip(axes.flat, starts, strict=False):
        mine = rollouts[rollouts["from_step"] == start]
        axis.hist(
            mine["advantage"],
            bins,
            weights=np.full(len(mine), 1 / len(mine)),
            color=COLOURS["rl"],
            alpha=0.85,
        )
        skewness = mine.groupby("seed", observed=True)["advantage"].skew().abs().mean()
        right = (mine["outcome"] == "correct").mean()
        axis.set(title=f"from step {start}", xlabel="advantage")
        axis.text(0.04, 0.96, f"correct {right:.0%}\n|skewness| {skewness:.2f}", transform=axis.transAxes, va="top")
        axis.axvline(0, ymax=0.75, color="#555555", linewidth=0.8)  # below the text
    first = axes[0, 0]
    first.set(ylabel="share of samples", ylim=(0, first.get_ylim()[1] * 1.3))
    first.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def rewards(rollouts: pd.DataFrame) -> Figure:
    """Mean training reward against RL update, for each start."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    starts = sorted(rollouts["from_step"].unique())
    for start, colour in zip(starts, sns.color_palette("viridis_r", len(starts)), strict=True):
        mine = rollouts[rollouts["from_step"] == start]
        groups = mine.groupby(["seed", "update", "group"], observed=True)["reward"].mean().reset_index()
        if groups["seed"].nunique() > 1:  # the band is over seeds, else over groups of answers to one hand
            groups = groups.groupby(["seed", "update"], observed=True)["reward"].mean().reset_index()
        curve = groups.groupby("update")["reward"].agg(["mean", "sem"]).rolling(5, center=True, min_periods=1).mean()
        axis.plot(curve.index, curve["mean"], color=colour, label=f"from step {start}")
        low, high = curve["mean"] - 1.96 * curve["sem"], curve["mean"] + 1.96 * curve["sem"]
        axis.fill_between(curve.index, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set(xlabel="RL update", ylabel="reward (5 = correct)", title="Training reward on ID hands, mean of 5 batches")
    figure.legend(loc="outside lower center", ncols=len(starts))
    return figure


def scorecard(claims: list[Claim]) -> Figure:
    """The verdicts as a table."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.74 * len(claims) + 0.4), layout="constrained")
    axis.set(xlim=(0, 1), ylim=(len(claims), -0.5))
    axis.axis("off")
    columns = (0.0, 0.535, 0.78, 0.855)
    for x, head in zip(columns, ("claim", "estimate [95 % interval]", "paper", "verdict"), strict=True):
        axis.text(x, -0.3, head, weight="bold", va="center", fontsize=10)
    for i, claim in enumerate(claims):
        axis.axhline(i, color="#DDDDDD", linewidth=0.8)
        title = textwrap.wrap(claim.title, 54)
        axis.text(0.0, i + 0.12, claim.claim, weight="bold", va="top", fontsize=10)
        axis.text(0.045, i + 0.12, "\n".join(title), va="top", fontsize=10)
        below = i + 0.12 + 0.23 * len(title)  # a line is 0.23 of a row
        axis.text(0.045, below, textwrap.fill(claim.quantity, 58), va="top", fontsize=10, color="#666666")
        for x, text in zip(columns[1:], (interval(claim), in_unit(claim.unit, claim.paper)), strict=False):
            axis.text(x, i + 0.12, text, va="top", fontsize=10)
        colour = VERDICT_COLOURS[claim.verdict]
        axis.text(columns[3], i + 0.12, claim.verdict, va="top", fontsize=10, color=colour, weight="bold")
    return figure
