"""The figures of notebook 06: what forgets less, what predicts it, and what it costs. From the sweeps' tables alone."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from oodlib.analysis.mitigations import ends
from oodlib.analysis.same_start import SFT, called
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, WIDTH, colour
from oodlib.plots.sweep import down, looks, points
from oodlib.tasks import Split, Splits

COLUMNS = 4  # of small panels
HUE = "#882255"  # of a mitigation, beside plain SFT in grey
OVER = {  # the points over which a measure's strength is taken, and how they look
    "ends": {"label": "over the ends of recipes and arms", "colour": "#332288", "mark": "o", "shift": -0.15},
    "all": {"label": "over all checkpoints too", "colour": "#999933", "mark": "D", "shift": 0.15},
}
WHAT = {  # what figures call a measure of `spectral.metrics.MEASURES`, and what everybody watches
    "kl_from_base": "KL(base || model), ID prompts",
    "kl_to_base": "KL(model || base), ID prompts",
    "entropy": "entropy of answers",
    "margin": "margin of answers",
    "cka": "hidden states: CKA",
    "mmd": "hidden states: MMD",
    "frechet": "hidden states: Fréchet distance",
    "weight_change": "weights: size of the change",
    "angle": "weights: angle, leading quarter",
    "value_change": "weights: singular values",
    "unchanged": "weights: unchanged, float32",
    "unchanged_bfloat16": "weights: unchanged, bfloat16",
    "principal": "weights: change on principal ones",
    "steps": "number of steps",
    "id_loss": "ID loss",
    "id_accuracy": "ID accuracy",
}


def frontiers(along: pd.DataFrame, mitigation_of: Mapping[str, str], plain: str, splits: Splits) -> Figure:
    """Each mitigation over its strengths, a panel each: headline over trained accuracy at the end, means over seeds.

    along: as `curves` returns it, called by mitigation and strength; mitigation_of: the mitigation of each name. Marks
    grow with the place of a strength in the plan. Grey is the path of plain SFT, from its first checkpoint on.
    """
    names = [m for m in dict.fromkeys(mitigation_of.values()) if m != plain]
    rows = -(-len(names) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(WIDTH, 2.1 * rows + 0.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    means = along[along["step"] > 0].groupby(["mitigation", "step"])[["trained", "headline"]].mean()
    last = ends(along)
    for axis, mitigation in zip(axes.flat, names, strict=False):
        axis.plot(*means.loc[plain].to_numpy().T, "o-", color=GREY, markersize=3, linewidth=1.2)
        places = []
        for i, name in enumerate(n for n, its in mitigation_of.items() if its == mitigation):
            if len(mine := last[last["mitigation"] == name]):
                x, y = (over_seeds(mine[column]) for column in ("trained", "headline"))
                draw.point(axis, x, y, HUE, size=4 + 2 * i)
                places.append((x.value, y.value))
        axis.plot(*np.transpose(places), color=HUE, linewidth=1.2)
        axis.set_title(mitigation, fontsize=10, weight="normal", loc="left")
        draw.percent(axis.xaxis)
        draw.percent(axis.yaxis)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    axes[0, 0].set(xlim=(last["trained"].min() / 2, None), ylim=(0, None))
    figure.supxlabel(f"{splits.trained.label} accuracy")
    figure.supylabel(f"{splits.headline.label} accuracy")
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=3, label=f"{plain}, along its steps"),
        Line2D([], [], color=HUE, marker="o", label="the mitigation at its end; larger marks: later in the plan"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def predictors(found: pd.DataFrame, split: Split) -> Figure:
    """How well each measure predicts what is lost on a split: quadratic fit and rank correlation, over ends and over
    all points. found: as `analysis.predictors.strengths` returns it.
    """
    mine = found[found["split"] == split.name]
    at_ends = mine[mine["over"] == "ends"].assign(size=lambda t: [e.value for e in t["fit"]])
    names = list(at_ends.sort_values("size", ascending=False)["measure"])
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.36 * len(names) + 1.6), sharey=True, layout="constrained")
    titles = {"fit": "R² of a quadratic fit", "rank": "rank correlation"}
    for axis, (column, title) in zip(axes, titles.items(), strict=True):
        axis.axvline(0, color="#AAAAAA", linewidth=1.2)
        for over, look in OVER.items():
            for row in mine[mine["over"] == over].itertuples():
                if row.measure in names:
                    place = names.index(row.measure) + look["shift"]
                    draw.point(axis, getattr(row, column), place, look["colour"], look["mark"], size=6)
        axis.set(title=title, xlim=(-0.05, 1.02) if column == "fit" else (-1.05, 1.05))
    down(axes[0], [WHAT.get(name, name) for name in names])
    handles = [
        Line2D([], [], linestyle="", marker=look["mark"], color=look["colour"], label=look["label"])
        for look in OVER.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle(f"What predicts the {split.label} accuracy that is lost? (95 % over seeds)", size=11)
    return figure


def same_start(found: pd.DataFrame, splits: Splits) -> Figure:
    """Each arm's path from the common start, a panel a split: accuracy there over trained accuracy, means over seeds.

    found: as `analysis.same_start.paths` returns it.
    """
    columns = {"headline": splits.headline} | {s.name: s for s in splits.others if s.name in found}
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 4.2), sharex=True, squeeze=False, layout="constrained")
    arms = list(found["mitigation"].unique())
    for axis, (column, split) in zip(axes[0], columns.items(), strict=True):
        for arm in arms:
            path = found[found["mitigation"] == arm].groupby("step")[["trained", column]].mean().to_numpy().T
            hue = COLOURS["sft"] if arm == SFT else colour(arm)
            axis.plot(*path, "o-", color=hue, markersize=4, label=called(arm))
        start = found[found["step"] == found["step"].min()][["trained", column]].mean()
        axis.plot(*start, "k*", markersize=12)
        axis.set_title(split.label, color=colour(split))
        draw.percent(axis.xaxis)
        draw.percent(axis.yaxis)
    axes[0, 0].set_ylabel("accuracy")
    figure.supxlabel(f"{splits.trained.label} accuracy")
    draw.legend_below(figure, axes[0, 0], 3)
    return figure


def regrets(found: Mapping[str, Mapping[str, Estimate]], splits: Splits) -> Figure:
    """What each rule for choosing a checkpoint lost, a panel a source; found: as `selection.measured_here` has it."""
    names = list(dict.fromkeys(rule for of in found.values() for rule in of))
    size = (WIDTH, 0.4 * len(names) + 1.2)
    figure, axes = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (source, of) in zip(axes[0], found.items(), strict=True):
        axis.axvline(0, color="#AAAAAA", linewidth=1.2)
        for rule, estimate in of.items():
            draw.point(axis, estimate, names.index(rule), colour(splits.headline), size=7)
        axis.set(title=source, xlabel=f"points of {splits.headline.label} below the peak")
        points(axis.xaxis)
    down(axes[0, 0], names)
    return figure


def pareto(
    table: pd.DataFrame, splits: Splits, along: pd.DataFrame | None = None, peak: pd.DataFrame | None = None
) -> Figure:
    """Headline accuracy at the end of SFT over trained accuracy, a mark a mitigation: means over seeds with 95 %.

    The axis of trained accuracy begins at half of the lowest end, so that it leaves out checkpoints without the format.
    table: columns mitigation, seed, trained, headline. along: the same with `step`, whose mean path is drawn. peak: the
    accuracies of plain SFT's peak by seed.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    for name, (hue, mark) in looks(table["mitigation"]).items():
        rows = table[table["mitigation"] == name]
        if along is not None:
            path = along[(along["mitigation"] == name) & (along["step"] > 0)].groupby("step")[["trained", "headline"]]
            axis.plot(*path.mean().to_numpy().T, color=hue, linewidth=1, alpha=0.6)
        draw.point(axis, over_seeds(rows["trained"]), over_seeds(rows["headline"]), hue, mark, size=9, label=name)
    if peak is not None:
        about = {"markerfacecolor": "none", "markeredgewidth": 1.8, "label": "plain SFT at its OOD peak\n(oracle)"}
        x, y = (over_seeds(peak[column]) for column in ("trained", "headline"))
        draw.point(axis, x, y, COLOURS["sft"], "*", size=14, **about)
    names = f"{splits.trained.label} accuracy", f"{splits.headline.label} accuracy"
    axis.set_xlim(left=table.groupby("mitigation")["trained"].mean().min() / 2)
    axis.set(ylim=(0, None), xlabel=names[0], ylabel=names[1], title="What each mitigation keeps, and costs")
    draw.percent(axis.xaxis)
    draw.percent(axis.yaxis)
    figure.legend(loc="outside right upper", labelspacing=0.8)
    return figure


def turned(table: pd.DataFrame, splits: Splits) -> Figure:
    """Headline accuracy at the end of SFT over the mean angle from the base, a mark a mitigation that has one."""
    figure, axis = plt.subplots(figsize=(WIDTH, 4.4), layout="constrained")
    for name, (hue, mark) in looks(table["mitigation"]).items():
        rows = table[(table["mitigation"] == name)].dropna(subset="angle")
        if len(rows):
            draw.point(axis, over_seeds(rows["angle"]), over_seeds(rows["headline"]), hue, mark, size=9, label=name)
    axis.set(xlabel="mean principal angle from the base, leading quarter (°)", title="Less turned, less forgotten?")
    axis.set(xlim=(0, None), ylim=(0, None), ylabel=f"{splits.headline.label} accuracy")
    draw.percent(axis.yaxis)
    figure.legend(loc="outside right upper", labelspacing=0.8)
    return figure


def equal_accuracy(found: dict[str, Estimate], claimed: str, splits: Splits) -> Figure:
    """The headline accuracy of one mitigation less each other's at equal trained accuracy, with 95 %."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.45 * len(found) + 1.3), layout="constrained")
    axis.axvline(0, color="#AAAAAA", linewidth=1.2)
    for row, estimate in enumerate(found.values()):
        draw.point(axis, estimate, row, COLOURS["sft"], size=8)
    down(axis, list(found))
    trained, headline = splits.trained.label, splits.headline.label
    axis.set(xlabel=f"points of {headline} accuracy, {claimed} less the other, at equal {trained} accuracy (95 %)")
    points(axis.xaxis)
    return figure
