"""The pictures of the widgets `timeline` and `surgery`; they stand alone where nobody can operate a widget."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oodlib.analysis.stats import Estimate, bands
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, LABELS, OUTCOME_COLOURS, WIDTH


def timeline(measurements: pd.DataFrame, rotation: pd.DataFrame, step: int) -> Figure:
    """One SFT checkpoint: its place on the accuracy and loss curves, its answers, and how far each matrix turned."""
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 6.6), layout="constrained", width_ratios=(1.25, 1))
    (curve, answers), (loss, turned) = axes
    sft = measurements[measurements["stage"] == "sft"]
    rows = {metric: sft[sft["metric"] == metric] for metric in ("accuracy", "loss")}
    accuracy = bands(rows["accuracy"])
    tested = bands(rows["loss"][rows["loss"]["split"] != "train"], shares=False)
    draw.splits(curve, accuracy, size=4)
    draw.step_axis(curve, accuracy["step"].unique())
    draw.losses(loss, rows["loss"], tested, "", size=4)
    for axis, data in ((curve, accuracy), (loss, tested)):
        axis.axvline(step, color="#333333", linewidth=1)
        for point in data[data["step"] == step].itertuples():
            look = {"color": COLOURS[point.split], "markersize": 11, "markeredgecolor": "k", "clip_on": False}
            axis.plot(step, point.mean, "o", **look)
    curve.legend(loc="upper left")
    curve.set(title=f"Checkpoint after {step} steps", ylabel="accuracy on all hands", ylim=(0, 1))
    draw.percent(curve.yaxis)
    loss.legend(handles=loss.lines[:1], loc="upper center")
    loss.set(title="Losses (of a right answer)")

    shares = sft[sft["step"] == step].pivot_table(index="split", columns="metric", values="value")
    shares = shares.rename(columns={"accuracy": "correct"}).reindex(["ood", "id"], columns=list(OUTCOME_COLOURS))
    shares = shares.rename(index=LABELS, columns=lambda outcome: outcome.replace("_", " "))
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


def edited(measured: dict[str, tuple[float, float, float]], known: dict[str, dict[str, float]], title: str) -> Figure:
    """ID and OOD accuracy of an edited model (value, low, high) between those of the models it is made from."""
    figure, axis = plt.subplots(figsize=(8.5, 2.6), layout="constrained")
    for y, split in enumerate(("ood", "id")):
        end, peak = known["end"][split], known["peak"][split]
        axis.plot([end, peak], [y, y], color="#BBBBBB", linewidth=3, zorder=1)
        axis.plot(end, y, "s", color="k", markersize=9, label="end of SFT (recipient)" if y else None)
        axis.plot(peak, y, "^", color="#7F7F7F", markersize=10, label="OOD peak (donor)" if y else None)
        value, low, high = measured[split]
        draw.point(axis, Estimate(value, low, high, 0, ""), y + 0.22, COLOURS[split], "D", capsize=4)
        axis.text(high + 0.015, y + 0.22, f"{value:.0%}", va="center", color=COLOURS[split], fontsize=11)
    axis.set(yticks=[0, 1], yticklabels=["OOD", "ID"], ylim=(-0.5, 1.7), xlim=(0, 1.02), title=title)
    axis.set_xlabel("accuracy (diamond: the edited model, 95 % interval)")
    draw.percent(axis.xaxis)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.38), ncols=2)
    return figure
