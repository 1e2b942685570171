"""The figures of notebook 06: what forgets less, what predicts it, and what it costs. From the sweeps' tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from oodlib.analysis.mitigations import TOO_LITTLE, ends
from oodlib.analysis.predictors import END, KL, KLS, START, WHAT
from oodlib.analysis.same_start import ON_POLICY, SFT, called
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, WIDTH, colour
from oodlib.plots.sweep import down, points
from oodlib.tasks import Split, Splits

COLUMNS = 4  # of small panels
UNITS = {**dict.fromkeys(KLS, " (nats an answer)"), "angle": " (radians)"}  # of measures that are no shares
HUE = "#882255"  # of a mitigation, beside plain SFT in grey
OVER = {  # the points over which a measure's strength is taken, and how they look
    "ends": {"label": "over the ends of recipes and arms", "colour": "#332288", "mark": "o", "shift": -0.15},
    "all": {"label": "over all checkpoints too", "colour": "#999933", "mark": "D", "shift": 0.15},
}


def frontiers(along: pd.DataFrame, mitigation_of: Mapping[str, str], plain: str, splits: Splits) -> Figure:
    """Each mitigation over its strengths, a panel each: headline over trained accuracy at the end, means and seeds.

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
                axis.plot(mine["trained"], mine["headline"], ".", color=HUE, markersize=3 + i, alpha=0.5)
                places.append(mine[["trained", "headline"]].mean())
                axis.plot(*places[-1], "o", color=HUE, markersize=4 + 2 * i)
        axis.plot(*np.transpose(places), color=HUE, linewidth=1.2)
        axis.set_title(mitigation, fontsize=10, weight="normal", loc="left")
        draw.percent(axis.xaxis)
        draw.percent(axis.yaxis)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    low, high = last["trained"].min(), last["trained"].max()
    axes[0, 0].set(
        xlim=(max(0, 1.2 * low - 0.2 * high), min(1, 1.1 * high)), ylim=(0, min(1, 1.2 * along["headline"].max()))
    )
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    figure.supxlabel(f"{splits.trained.label} accuracy", size=11)
    figure.supylabel(f"{splits.headline.label} accuracy", size=11)
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=3, label=f"{plain}, along its steps"),
        Line2D(
            [], [], color=HUE, marker="o", label="each strength at its end, and its seeds; larger: later in the list"
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
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


def lost_over(points_: pd.DataFrame, found: pd.DataFrame, splits: Splits) -> Figure:
    """What is lost at the ends of recipes and arms over KL and over the two measures that tell it best, by corner.

    points_: as `analysis.predictors.forgetting` returns it, means over seeds; found: as `strengths` does. A line is the
    parabola through a corner's dots.
    """
    split = splits.headline
    fits = found[(found["split"] == split.name) & (found["over"] == "ends")].set_index("measure")["fit"]
    best = sorted((name for name in fits.index if name != KL), key=lambda name: -fits[name].value)
    measures, corners = [KL, *best[:2]], [s for s in splits if s != splits.trained]
    means = points_[points_["end"]].groupby(["condition", "arm", "from_step"]).mean(numeric_only=True)
    figure, axes = plt.subplots(1, len(measures), figsize=(WIDTH, 3.9), sharey=True, layout="constrained")
    for axis, measure in zip(axes, measures, strict=True):
        axis.axhline(0, color="#AAAAAA", linewidth=1.2)
        for corner in corners:
            x, y = means[[measure, f"lost_{corner.name}"]].dropna().to_numpy().T
            axis.plot(x, y, "o", color=colour(corner), markersize=5, alpha=0.8, label=corner.label)
            along = np.linspace(x.min(), x.max(), 50)
            axis.plot(along, np.polynomial.Polynomial.fit(x, y, 2)(along), color=colour(corner), linewidth=1.2)
        axis.set_xlabel(fill(f"{WHAT.get(measure, measure)}{UNITS.get(measure, '')}", 26))
        axis.set_title(f"R² {fits[measure].text('.2f')}", fontsize=10)
        points(axis.yaxis)
    axes[0].set_ylabel("points lost since the best")
    draw.legend_below(figure, axes[0], len(corners))
    figure.suptitle(f"A dot is the end of a recipe; R² of {split.label}, within a seed (95 % over seeds)", size=11)
    return figure


def same_start(found: pd.DataFrame, splits: Splits) -> Figure:
    """Each arm's path from the common start, a panel a split: accuracy there over trained accuracy, means over seeds
    with intervals at the end. On-policy arms have solid lines.

    found: as `analysis.same_start.paths` returns it.
    """
    columns = {"headline": splits.headline} | {s.name: s for s in splits.others if s.name in found}
    figure, axes = plt.subplots(1, len(columns), figsize=(WIDTH, 4.2), sharex=True, squeeze=False, layout="constrained")
    arms = list(found["mitigation"].unique())
    for axis, (column, split) in zip(axes[0], columns.items(), strict=True):
        for arm in arms:
            path = found[found["mitigation"] == arm].groupby("step")[["trained", column]].mean().to_numpy().T
            hue = COLOURS["sft"] if arm == SFT else colour(arm)
            style = "o-" if arm in ON_POLICY else "o--"
            axis.plot(*path, style, color=hue, markersize=4, label=called(arm))
            last = ends(found[found["mitigation"] == arm])
            draw.point(axis, over_seeds(last["trained"]), over_seeds(last[column]), hue, size=4)
        start = found[found["step"] == found["step"].min()][["trained", column]].mean()
        axis.plot(*start, "k*", markersize=12)
        axis.set_title(split.label, color=colour(split))
        draw.percent(axis.xaxis)
        draw.percent(axis.yaxis)
        axis.set_xlabel(f"{splits.trained.label} accuracy")
    axes[0, 0].set_ylabel("accuracy on the split")
    draw.legend_below(figure, axes[0, 0], 3)
    figure.suptitle("From the star: on-policy arms solid, others dashed (95 % over seeds at the ends)", size=11)
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


def kept(found: pd.DataFrame, splits: Splits, plain: str) -> Figure:
    """What each mitigation has more than plain SFT, a panel a split; found: as `mitigations.by_corner` returns it."""
    names, panels = list(found["mitigation"].unique()), list(found["split"].unique())
    size = (WIDTH, 0.3 * len(names) + 1.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        axis.axvline(0, color="#AAAAAA", linewidth=1.2)
        split = splits[panel]
        for row in found[found["split"] == panel].itertuples():
            draw.point(axis, row.gain, names.index(row.mitigation), colour(split), size=6)
        if split == splits.headline:
            for name in set(names) - set(found.loc[found["split"] == split.name, "mitigation"]):
                where = {"transform": axis.get_yaxis_transform(), "va": "center"}
                axis.text(0.03, names.index(name), TOO_LITTLE, size=8, color=GREY, **where)
        axis.set_title(f"{split.label}\n{'at the end' if split == splits.trained else 'at equal ID'}", fontsize=10)
        axis.set_xlabel("points")
        points(axis.xaxis)
    down(axes[0, 0], names)
    figure.suptitle(f"Accuracy less that of {plain} (95 % over seeds)", size=11)
    return figure


def hidden_states(found: pd.DataFrame) -> Figure:
    """Where the hidden states of ID prompts went: along the base's principal components, and by layer.

    found: as `analysis.predictors.hidden_states` returns it; means over seeds, with 95 % by layer.
    """
    figure, (plane, layers) = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    means = found.groupby(["place", "metric"], sort=False)["value"].mean().unstack()
    begin, numbers = tuple(means.loc[START, ["pc1", "pc2"]]), sorted(int(m[4:]) for m in means if m.startswith("cka_"))
    plane.plot(0, 0, "*", color=GREY, markersize=13)
    plane.annotate("base", (0, 0), xytext=(6, 6), textcoords="offset points")
    for name in means.index:
        arm = name not in (START, END)
        hue, mark = (colour(name) if arm else COLOURS["sft"]), {START: "D", END: "s"}.get(name, "o")
        end = tuple(means.loc[name, ["pc1", "pc2"]])
        look = {"arrowstyle": "-|>", "color": hue, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
        plane.annotate("", end, (0, 0) if name == START else begin, arrowprops=look)
        plane.plot(*end, mark, color=hue, markersize=6)
        mine = found[found["place"] == name].groupby("metric")["value"]
        bars = [over_seeds(mine.get_group(f"cka_{i}")) for i in numbers]
        values, lines = [e.value for e in bars], "--" if name == START else "-"
        layers.plot(numbers, values, lines, marker=mark, color=hue, ms=5, label=called(name) if arm else name)
        layers.fill_between(numbers, [e.low for e in bars], [e.high for e in bars], color=hue, alpha=0.12, linewidth=0)
    plane.set(xlabel="first principal component of the base", ylabel="second")
    plane.set_title("Where the mean hidden state went, last layer", fontsize=10)
    layers.set(xlabel="layer", xticks=numbers, ylabel="linear CKA", ylim=(max(0, layers.get_ylim()[0]), 1.02))
    layers.set_title("Likeness to the base's hidden states", fontsize=10)
    draw.legend_below(figure, layers, 3)
    return figure
