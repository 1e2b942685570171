"""The figures of the sweep: where RL heals more than its baselines, and what to do instead. From its table alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from oodlib.analysis.healing import RULES, Effect, wide
from oodlib.analysis.stats import over_seeds
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, LABELS, WIDTH, colour, in_order, label

# What a verdict looks like, in the order of RULES. Not the colours of arms and splits, and each has its mark.
HUES = ("#DDDDDD", "#A9ADB1", "#A1887F", "#0B2A5B", "#4E342E", "#7F9CC9", "#5F6B78")
LOOKS = dict(zip(RULES, zip(HUES, "PXD^vso", strict=True), strict=True))
# Of mitigations that are no baseline; not the colours of arms and splits, and each has its mark besides.
MITIGATION_COLOURS = ("#332288", "#44AA99", "#882255", "#999933", "#EE3377", "#5B6C8F", "#661100", "#6699CC")
BASELINES_TOO = {"averaging": "averaging", "interpolation": "interpolation_base"}  # mitigation: that baseline
ACCURACY = "accuracy within three attempts"


def forest(effects: list[Effect]) -> Figure:
    """RL against the best baseline (full) and its own start (open), in points of OOD accuracy, with 95 %."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.48 * len(effects) + 1.8), layout="constrained")
    beside = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 10}
    for row, effect in enumerate(effects):
        hue, mark = LOOKS[effect.verdict]
        draw.point(axis, effect.gain, row - 0.14, GREY, size=8, markerfacecolor="none")
        draw.point(axis, effect.effect, row + 0.14, hue, mark, size=8)
        axis.text(1.02, row, label(effect.best).removeprefix("baseline: "), **beside)
    axis.text(1.02, -0.95, "best baseline", weight="bold", **beside)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    axis.set_yticks(range(len(effects)), [f"{e.condition}, from step {e.start} (n = {e.effect.n})" for e in effects])
    axis.set(ylim=(len(effects) - 0.4, -0.8), xlabel="difference in OOD accuracy within three attempts, points (95 %)")
    axis.set_title("Does RL heal more than its best baseline?")
    handles = [Line2D([], [], marker="o", color=GREY, mfc="none", ms=8, label="RL - its own start")]
    handles += [
        Line2D([], [], marker=mark, color=hue, ms=8, label=f"RL - best baseline: {verdict}")
        for verdict, (hue, mark) in LOOKS.items()
        if verdict in {effect.verdict for effect in effects}
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def arms(table: pd.DataFrame, condition: str) -> Figure:
    """ID and OOD accuracy of the start and of every arm from there, a column a start; dots are seeds."""
    by_split = {split: wide(table, split).loc[condition].drop(columns="peak") for split in ("ood", "id")}
    starts = sorted(by_split["ood"].index.get_level_values("from_step").unique())
    figure, axes = plt.subplots(2, len(starts), figsize=(WIDTH, 7), squeeze=False, layout="constrained")
    for line, (split, accuracies) in zip(axes, by_split.items(), strict=True):
        for axis, start in zip(line, starts, strict=True):
            rows = accuracies.xs(start, level="from_step").dropna(axis=1, how="all")
            shown = in_order(rows.columns)
            for y, arm in enumerate(shown):
                axis.plot(rows[arm], [y] * len(rows), "o", color=colour(arm), alpha=0.3, markersize=4)
                draw.point(axis, over_seeds(rows[arm]), y, colour(arm), "D", size=8)
            axis.axvline(rows["start"].mean(), color=COLOURS["start"], linewidth=0.8, linestyle=":")
            axis.set_yticks(range(len(shown)), [label(a) for a in shown] if axis is line[0] else [""] * len(shown))
            axis.set(title=f"{LABELS[split]}, from step {start}", xlabel=ACCURACY, ylim=(len(shown) - 0.5, -0.5))
            draw.percent(axis.xaxis)
    return figure


# ---- mitigations -----------------------------------------------------------------------------------------


def mitigations(table: pd.DataFrame, x: str = "id", peak: pd.DataFrame | None = None) -> Figure:
    """OOD accuracy at the end of SFT against `x`, a mark a mitigation: means over seeds with 95 % intervals.

    table: columns mitigation, seed, id, ood, angle; x: "id" (accuracy) or "angle" (degrees from the base; mitigations
    without one are left out); peak: id and ood of plain SFT's OOD peak by seed. The first half of the mitigations has
    large open marks, the other half small full ones, so that none hides another.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 5.2), layout="constrained")
    names = list(table["mitigation"].unique())
    others = [name for name in names if name != "plain SFT" and name not in BASELINES_TOO]
    hues = {name: MITIGATION_COLOURS[i % len(MITIGATION_COLOURS)] for i, name in enumerate(others)}
    for i, name in enumerate(names):
        rows = table[table["mitigation"] == name].dropna(subset=[x])
        hue = hues.get(name) or colour(BASELINES_TOO.get(name, "sft"))
        if len(rows):
            _mark(axis, rows, x, hue, "oDs^vPX<>hd"[i % 11], name, full=i > len(names) // 2 - 1)
    if peak is not None:
        _mark(axis, peak, x, COLOURS["sft"], "*", "plain SFT at its OOD peak\n(oracle)", full=False)
    axis.set(ylim=(0, None), ylabel="OOD accuracy within three attempts")
    draw.percent(axis.yaxis)
    if x == "id":
        axis.set(xlabel="ID accuracy within three attempts", title="What each mitigation keeps, and costs")
        draw.percent(axis.xaxis)
    else:
        axis.set(xlabel="mean principal angle from the base, leading quarter (°)", title="Less turned, less forgotten?")
        axis.set_xlim(left=0)  # no angle is below, even where an interval is
    figure.legend(loc="outside right upper", labelspacing=0.8)
    return figure


def _mark(axis: Axes, rows: pd.DataFrame, column: str, hue: str, mark: str, name: str, full: bool) -> None:
    look = {"size": 7} if full else {"size": 14, "markerfacecolor": "none", "markeredgewidth": 1.8}
    draw.point(axis, over_seeds(rows[column]), over_seeds(rows["ood"]), hue, mark, label=name, **look)


def best_start(mitigations: pd.DataFrame) -> Figure:
    """Accuracies before and after RL from the end of each mitigation.

    `mitigations` has the columns mitigation, seed, id, ood, rl_id, rl_ood; those without RL are left out.
    """
    played = mitigations.dropna(subset=["rl_ood"])
    names = list(played["mitigation"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.5 * len(names) + 2), sharey=True, layout="constrained")
    for axis, split in zip(axes, ("ood", "id"), strict=True):
        for y, name in enumerate(names):
            rows = played[played["mitigation"] == name]
            before, after = over_seeds(rows[split]), over_seeds(rows[f"rl_{split}"])
            axis.plot([before.value, after.value], [y, y], color="#BBBBBB", linewidth=1)
            for estimate, shift, arm in ((before, 0.1, "start"), (after, -0.1, "rl")):
                draw.point(axis, estimate, y + shift, colour(arm), label=None if y else label(arm))
        axis.set(title=f"{LABELS[split]} accuracy", xlabel=ACCURACY, ylim=(len(names) - 0.5, -0.5))
        draw.percent(axis.xaxis)
    axes[0].set_yticks(range(len(names)), names)
    draw.legend_below(figure, axes[0], 2)
    return figure
