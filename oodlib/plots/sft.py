"""The figures of stage 1, SFT: accuracy, losses, kinds of answers, and rotation along the checkpoints."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from oodlib.analysis.claims import PAPER
from oodlib.analysis.stats import bands
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, LABELS, OUTCOME_COLOURS, WIDTH
from oodlib.tasks import OUTCOMES

PAPER_HANDS = 234  # on which the paper measures


def accuracy_curve(measurements: pd.DataFrame) -> Figure:
    """ID and OOD accuracy against SFT step, the OOD peak marked; the paper's LLaMA beside it."""
    data = bands(measurements.query("stage == 'sft' and metric == 'accuracy'"))
    figure, (here, paper) = plt.subplots(1, 2, figsize=(WIDTH, 4), width_ratios=(1.4, 1), layout="constrained")
    draw.splits(here, data)
    ood = data[data["split"] == "ood"]
    peak = ood.loc[ood["mean"].idxmax()]
    draw.step_axis(here, ood["step"])
    draw.mark_peak(here, peak["step"], f"OOD peak: {peak['mean']:.1%}\nat step {peak['step']:.0f}")
    here.set(ylabel="accuracy on all hands of the split", title="This run", ylim=(0, 1))
    draw.legend_below(figure, here, 2)
    reported = paper_curve("sft")
    draw.line(paper, reported, "ood")
    paper.axvline(reported.loc[reported["mean"].idxmax(), "step"], color=GREY, linestyle=":")
    paper.set(xlabel=f"SFT step ({PAPER_HANDS} hands, one run)", ylim=(0, 0.3), title="The paper: LLaMA-3.2-11B")
    for axis in (here, paper):
        draw.percent(axis.yaxis)
    return figure


def paper_curve(arm: str) -> pd.DataFrame:
    """OOD accuracy of the paper's LLaMA after SFT, or after RL from there, with Wilson's intervals.

    arm: sft or rl. Columns step, mean, low, high.
    """
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    share = np.divide(curve["sft" if arm == "sft" else "rl_from_step"], 100)
    return bands(pd.DataFrame({"step": curve["step"], "seed": 0, "value": share, "n": PAPER_HANDS}))


def losses(measurements: pd.DataFrame, hands: pd.DataFrame) -> Figure:
    """Training, ID and OOD loss against step, the OOD accuracy peak marked: does a loss show it (C2)?"""
    rows = measurements.query("stage == 'sft' and metric == 'loss'")
    tested = bands(rows[rows["split"] != "train"], shares=False)
    if measurements["seed"].nunique() == 1:  # one seed: the band is over hands
        spread = hands[hands["stage"] == "sft"].groupby(["split", "step"], observed=True)["loss"].sem().rename("sem")
        tested = tested.merge(spread.reset_index().astype({"split": str}), on=["split", "step"])
        tested["low"], tested["high"] = tested["mean"] - 1.96 * tested["sem"], tested["mean"] + 1.96 * tested["sem"]
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    train = rows[rows["split"] == "train"].groupby("step")["value"].mean()
    axis.plot(train.index, train, color=COLOURS["train"], linewidth=0.6, alpha=0.3, label="training, each batch")
    draw.losses(axis, rows, tested, " test")
    accuracy = bands(measurements.query("stage == 'sft' and metric == 'accuracy' and split == 'ood'"))
    draw.mark_peak(axis, accuracy.loc[accuracy["mean"].idxmax(), "step"], "OOD accuracy\npeak")
    axis.set_title("Losses through SFT")
    draw.legend_below(figure, axis, 4)
    return figure


def outcomes(measurements: pd.DataFrame) -> Figure:
    """The kinds of answers against step, for both splits (C3)."""
    metrics = ["accuracy", *OUTCOMES[1:]]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4), sharey=True, layout="constrained")
    names = [outcome.replace("_", " ") for outcome in OUTCOMES]
    for axis, split in zip(axes, ("id", "ood"), strict=True):
        rows = measurements.query("stage == 'sft' and split == @split")
        table = rows.pivot_table(index="step", columns="metric", values="value")[metrics].dropna()
        axis.stackplot(table.index, table.T.to_numpy(), labels=names, colors=list(OUTCOME_COLOURS.values()))
        draw.step_axis(axis, table.index)
        axis.set(title=f"{LABELS[split]} answers", ylim=(0, 1))
        axis.grid(False)
    axes[0].set_ylabel("share of all hands")
    draw.percent(axes[0].yaxis)
    draw.legend_below(figure, axes[1], 5)
    return figure


def rotation_and_accuracy(turned: pd.DataFrame) -> Figure:
    """Accuracy against how far the leading directions are turned from the base; above, at which steps.

    turned: `stats.rotation_and_accuracy(measurements, "sft")`.
    """
    figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
    degrees = np.degrees(turned.groupby("step")["rotation"].mean())
    for split in ("id", "ood"):
        data = bands(turned.assign(value=turned[split], n=turned[f"n_{split}"])[["step", "seed", "value", "n"]])
        draw.line(axis, data.assign(step=degrees.reindex(data["step"]).to_numpy()), split)
    unit = "mean principal angle from the base, leading 20 % (°)"
    axis.set(xlabel=unit, ylabel="accuracy", ylim=(0, None), xscale="log")
    steps = degrees[degrees > 0].sort_values()
    steps = steps.iloc[draw.with_room(axis, steps)]
    above = axis.secondary_xaxis("top")
    above.set_xticks(steps, steps.index.astype(str))
    above.set_xticks([], minor=True)
    above.set_xlabel("SFT step")
    axis.xaxis.set_major_formatter(ScalarFormatter())
    draw.percent(axis.yaxis)
    axis.legend(loc="upper left")
    return figure
