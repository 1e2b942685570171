"""The figures of the sweep: does RL heal more than annealing does? From its table alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from oodlib.analysis import healing
from oodlib.analysis.healing import Comparison
from oodlib.analysis.stats import Estimate
from oodlib.plots import draw
from oodlib.plots.style import COLOURS, GREY, WIDTH, colour, label
from oodlib.tasks import Splits

# Of conditions and mitigations: not the colours of arms and splits, and each has its mark besides.
HUES = ("#332288", "#44AA99", "#882255", "#999933", "#EE3377", "#5B6C8F", "#661100", "#6699CC")
MARKS = "osD^vP*X"


def looks(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a mark for each of some conditions."""
    return {name: (HUES[i % len(HUES)], MARKS[i % len(MARKS)]) for i, name in enumerate(dict.fromkeys(names))}


def points(axis: Axis) -> None:
    """Ticks in percentage points."""
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}".replace("-", "−"))


def short(arm: str) -> str:
    """An arm's name where there is little room."""
    return "RL" if arm == "rl" else label(arm).removeprefix("baseline: ")


# ---- RL against baselines --------------------------------------------------------------------------------


def against(found: Sequence[Comparison]) -> Figure:
    """What RL gains over what a baseline gains, a column a baseline, a row a corner; a dot a condition, start and seed.

    Hollow dots are starts that had lost nothing, which no estimate counts. The grey line is the diagonal, the coloured
    one the major axis of the full dots. A panel's title has the mean difference with its interval.
    """
    arms, splits = (list(dict.fromkeys(of)) for of in ((c.baseline for c in found), (c.split.name for c in found)))
    size = (WIDTH, 2.55 * len(splits) + 1.2)
    figure, axes = plt.subplots(
        len(splits), len(arms), figsize=size, squeeze=False, sharex="row", sharey="row", layout="constrained"
    )
    marks = looks(condition for c in found for condition in c.dots["condition"].unique())
    drawn = dict.fromkeys((row, column) for row in range(len(splits)) for column in range(len(arms)))
    for c in found:
        drawn[splits.index(c.split.name), arms.index(c.baseline)] = c
    for (row, column), c in drawn.items():
        axis = axes[row, column]
        if c is None:
            axis.set_visible(False)
            continue
        axis.axline((0, 0), slope=1, color="#AAAAAA", linewidth=1.2)
        for at in (axis.axhline, axis.axvline):
            at(0, color="#DDDDDD", linewidth=1)
        for (condition, full), dots in c.dots.groupby(["condition", "lost"], sort=False):
            hue, mark = marks[condition]
            face = hue if full else "none"
            axis.plot(dots["baseline"], dots["rl"], mark, color=hue, mfc=face, alpha=0.75, ms=4.5, mew=0.9)
        kept = c.dots[c.dots["lost"]]
        x = np.array([kept["baseline"].min(), kept["baseline"].max()])
        if abs(c.slope.value) < 10:  # a line that is nearly upright says nothing
            axis.plot(x, c.intercept.value + c.slope.value * x, color=COLOURS["rl"], linewidth=2)
        axis.set_title(f"{c.difference.text('+.1f', 100)}", fontsize=10, weight="normal", loc="center")
        if row == max(r for (r, k), other in drawn.items() if k == column and other):
            axis.set_xlabel(f"{short(c.baseline)}\ngains", fontsize=10)
        if column == min(k for (r, k), other in drawn.items() if r == row and other):
            axis.set_ylabel(f"{c.split.label}:\nRL gains", fontsize=10)
        points(axis.xaxis)
        points(axis.yaxis)
    for row, name in enumerate(splits):  # a point across is as long as one up
        gained = np.concatenate([c.dots[["baseline", "rl"]].to_numpy().ravel() for c in found if c.split.name == name])
        ends = np.nanmin(gained) - 0.05 * np.ptp(gained), np.nanmax(gained) + 0.05 * np.ptp(gained)
        for axis in axes[row]:
            axis.set(xlim=ends, ylim=ends, box_aspect=1)
    handles = [Line2D([], [], marker=m, color=hue, linestyle="", ms=6, label=name) for name, (hue, m) in marks.items()]
    if not all(c.dots["lost"].all() for c in found):
        handles.append(Line2D([], [], marker="o", color=GREY, mfc="none", linestyle="", ms=6, label="nothing lost yet"))
    handles.append(Line2D([], [], color=COLOURS["rl"], linewidth=2, label="major axis"))
    handles.append(Line2D([], [], color="#AAAAAA", linewidth=1.2, label="equal gains"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.suptitle("Points of accuracy that RL gains, and a baseline; above each: RL minus the baseline", size=11)
    return figure


def by_start(table: pd.DataFrame, splits: Splits, baselines: Sequence[str]) -> Figure:
    """RL less a baseline (headline accuracy) by how much of the fall has happened at the start; a line a condition."""
    figure, axes = plt.subplots(
        1, len(baselines), figsize=(WIDTH, 3.9), squeeze=False, sharey=True, layout="constrained"
    )
    marks = looks(table["condition"].unique())
    for axis, baseline in zip(axes[0], baselines, strict=True):
        rows = healing.by_start(table, splits, baseline).dropna(subset="fall")
        axis.axhline(0, color="#AAAAAA", linewidth=1.2)
        for condition, at in rows.groupby("condition", sort=False):
            at, (hue, mark) = at.sort_values("fall"), marks[condition]
            axis.plot(at["fall"], [e.value for e in at["difference"]], color=hue, linewidth=1)
            for fall, full, e in zip(at["fall"], at["lost"], at["difference"], strict=True):
                upright(axis, fall, e, hue, mark, markerfacecolor=hue if full else "none")
        axis.set(xlabel="share of the fall", title=fill(f"less {short(baseline)}", 20))
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        points(axis.yaxis)
    axes[0, 0].set_ylabel(f"RL less it, points of {splits.headline.label}")
    used = [name for name in marks if name in set(table.loc[table["stage"] == "rl", "condition"])]
    handles = [Line2D([], [], marker=marks[n][1], color=marks[n][0], ms=6, label=n) for n in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def upright(axis: Axes, x: float, y: Estimate, hue: str, mark: str = "o", **more: object) -> None:
    """A mark with the interval of y."""
    ends = [[y.value - y.low], [y.high - y.value]]
    axis.errorbar(x, y.value, ends, fmt=mark, color=hue, elinewidth=1.5, markersize=6, **more)


def gains(found: pd.DataFrame, splits: Splits, title: str) -> Figure:
    """What each arm gains, a panel a split; `found` as `healing.gains` returns it."""
    figure, panels = _panels(found, "split", 1.5, "points gained")
    for name, axis in panels.items():
        axis.set_title(splits[name].label, color=colour(splits[name]))
    figure.suptitle(title, size=11)
    return figure


def what_returns(found: pd.DataFrame) -> Figure:
    """How each part of an answer changes, a panel a part, a row an arm; `found`: as `questions.what_returns` has it."""
    figure, panels = _panels(found, "part", 1.7, "points")
    for part, axis in panels.items():
        axis.set_title(part, fontsize=10)
    return figure


def _panels(found: pd.DataFrame, column: str, room: float, unit: str) -> tuple[Figure, dict[str, Axes]]:
    """The gains of a table (columns `column`, arm, gain), a panel a value of the column and a row an arm.

    room: inches beside the rows. Returns the panels by that value.
    """
    arms, names = (list(dict.fromkeys(found[c])) for c in ("arm", column))
    lines = 1 if len(names) <= 5 else 2
    size, shape = (WIDTH, lines * (0.34 * len(arms) + room)), (lines, -(-len(names) // lines))
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, sharey=True, layout="constrained")
    panels = dict(zip(names, axes.flat, strict=False))
    for empty in axes.flat[len(names) :]:
        empty.remove()
    for name, axis in panels.items():
        axis.axvline(0, color="#AAAAAA", linewidth=1.2)
        for arm, gain in found.loc[found[column] == name, ["arm", "gain"]].itertuples(index=False):
            draw.point(axis, gain, arms.index(arm), colour(arm), size=7)
        axis.set_xlabel(unit)
        points(axis.xaxis)
    for axis in axes[:, 0]:
        down(axis, [short(arm) for arm in arms])
    return figure, panels


def down(axis: Axes, names: Sequence[str]) -> None:
    """Names from top to bottom."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
