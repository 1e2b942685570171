"""The pictures of the widgets `timeline` and `surgery`; they stand alone where nobody can operate a widget."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oodlib.analysis.stats import Estimate, bands
from oodlib.plots import draw
from oodlib.plots.style import OUTCOME_COLOURS, WIDTH
from oodlib.tasks import Splits


def timeline(measurements: pd.DataFrame, rotation: pd.DataFrame, step: int, splits: Splits) -> Figure:
    """One SFT checkpoint: its place on the accuracy and loss curves, its answers, and how far each matrix turned."""
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 6.6), layout="constrained", width_ratios=(1.25, 1))
    (curve, answers), (loss, turned) = axes
    sft = measurements[measurements["stage"] == "sft"]
    tests = sft[sft["split"].isin(splits.names)]
    accuracy = bands(tests[tests["metric"] == "accuracy"])
    tested = bands(tests[tests["metric"] == "loss"], shares=False)
    draw.by_split(curve, accuracy, splits, size=4)
    draw.step_axis(curve, accuracy["step"].unique())
    draw.losses(loss, sft[sft["metric"] == "loss"], tested, splits, "", size=4)
    for axis, data in ((curve, accuracy), (loss, tested)):
        axis.axvline(step, color="#333333", linewidth=1)
        for point in data[data["step"] == step].itertuples():
            look = {"color": splits[point.split].colour, "markersize": 11, "markeredgecolor": "k", "clip_on": False}
            axis.plot(step, point.mean, "o", **look)
    paper = {"frameon": True, "framealpha": 1, "edgecolor": "none"}
    curve.legend(loc="upper left", ncols=2, **paper)
    curve.set(title=f"Checkpoint after {step} steps", ylabel="accuracy", ylim=(0, 1.3))
    draw.percent(curve.yaxis)
    curve.set_yticks(np.linspace(0, 1, 6))
    loss.legend(handles=loss.lines[:1], loc="upper center", **paper)
    loss.set(title="Losses (of a right answer)")

    shares = tests[tests["step"] == step].pivot_table(index="split", columns="metric", values="value")
    shares = shares.rename(columns={"accuracy": "correct"}).reindex(splits.names[::-1], columns=list(OUTCOME_COLOURS))
    shares = shares.rename(index={s.name: s.label for s in splits}, columns=lambda outcome: outcome.replace("_", " "))
    shares.plot.barh(stacked=True, ax=answers, color=list(OUTCOME_COLOURS.values()), width=0.8, xlim=(0, 1))
    answers.set(title="Its answers", xlabel="share of all hands", ylabel="")
    answers.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=10)
    answers.grid(False)
    draw.percent(answers.xaxis)

    watched = rotation[(rotation["metric"] == "rotation") & (rotation["stage"] == "sft")]
    turned.set_title("Leading directions turned")
    if len(at_step := watched[watched["step"] == step]):
        draw.module_map(turned, draw.by_module(at_step), float(np.degrees(watched["value"].max())))
    else:
        why = "the base itself: nothing turned" if step == 0 else "rotation was not watched in this run"
        turned.text(0.5, 0.5, why, ha="center", va="center", transform=turned.transAxes)
        turned.axis("off")
    return figure


def edited(
    measured: dict[str, tuple[float, float, float]], known: dict[str, dict[str, float]], title: str, splits: Splits
) -> Figure:
    """Accuracy of an edited model by split (value, low, high) between those of the models it is made from."""
    shown = [split for split in reversed(list(splits)) if split.name in measured]
    figure, axis = plt.subplots(figsize=(8.5, 0.55 * len(shown) + 1.5), layout="constrained")
    for y, split in enumerate(shown):
        end, peak = known["end"][split.name], known["peak"][split.name]
        axis.plot([end, peak], [y, y], color="#BBBBBB", linewidth=3, zorder=1)
        axis.plot(end, y, "s", color="k", markersize=9, label=None if y else "end of SFT (recipient)")
        peak_name = f"{splits.headline.label} peak (donor)"
        axis.plot(peak, y, "^", color="#7F7F7F", markersize=10, label=None if y else peak_name)
        value, low, high = measured[split.name]
        draw.point(axis, Estimate(value, low, high, 0, ""), y + 0.3, split.colour, "D", capsize=4)
        axis.text(high + 0.015, y + 0.3, f"{value:.0%}", va="center", color=split.colour, fontsize=11)
    names = [split.label for split in shown]
    axis.set(yticks=range(len(shown)), yticklabels=names, ylim=(-0.5, len(shown) - 0.3), xlim=(0, 1.06), title=title)
    axis.set_xlabel("accuracy (diamond: the edited model, 95 % interval)")
    draw.percent(axis.xaxis)
    draw.legend_below(figure, axis, 2)
    return figure
