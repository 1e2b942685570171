"""Pieces of figures: lines with bands, estimates with intervals, maps of modules, axes of steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from oodlib.analysis.stats import Estimate
from oodlib.plots.style import COLOURS, GREY, MODULE_ORDER, colour, label
from oodlib.tasks import Split, Splits


def legend_below(figure: Figure, axis: Axes, columns: int) -> None:
    """The legend of one axis under the whole figure."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def line(
    axis: Axes, data: pd.DataFrame, of: str | Split, name: str | None = None, size: float = 5, **more: Any
) -> None:
    """Mean and band (columns step, mean, low, high) of a split, an arm or an edit; `more` changes the line."""
    data = data.sort_values("step")
    look = {"color": colour(of), "marker": "o", "markersize": size, "label": name or label(of), **more}
    axis.plot(data["step"], data["mean"], **look)
    axis.fill_between(data["step"], data["low"], data["high"], color=look["color"], alpha=0.15, linewidth=0)


def by_split(axis: Axes, data: pd.DataFrame, splits: Splits, more: str = "", size: float = 5) -> None:
    """The `line` of each split that the table has."""
    for split in splits:
        if len(rows := data[data["split"] == split.name]):
            line(axis, rows, split, split.label + more, size)


def at_ends(axis: Axes, ends: Iterable[tuple[float, str]], gap: float) -> None:
    """Texts to the right of the axis, each at a height of its y axis, but `gap` of the axis or more apart."""
    (low, high), room = axis.get_ylim(), 1.0
    for below, (height, text) in reversed(list(enumerate(sorted(ends)))):
        place = max(min((height - low) / (high - low), room), gap * below)
        axis.text(1.03, place, text, transform=axis.transAxes, va="center", fontsize=10)
        room = place - gap


def bars(axis: Axes, data: pd.DataFrame, arm: str, look: str, shift: float = 1, **more: Any) -> None:
    """Means with error bars (columns from_step, mean, low, high) of an arm, by the step from which it starts."""
    data = data.sort_values("from_step")
    ends = [data["mean"] - data["low"], data["high"] - data["mean"]]
    axis.errorbar(shift * data["from_step"], data["mean"], ends, fmt=look, color=colour(arm), capsize=3, **more)


def point(
    axis: Axes, x: Estimate, y: Estimate | float, hue: str, mark: str = "o", size: float = 7, **more: Any
) -> None:
    """A mark with the interval of x, and with that of y where y is an estimate."""
    ends = [[[e.value - e.low], [e.high - e.value]] if isinstance(e, Estimate) else None for e in (x, y)]
    y = y.value if isinstance(y, Estimate) else y
    axis.errorbar(x.value, y, ends[1], ends[0], fmt=mark, color=hue, elinewidth=1.8, markersize=size, **more)


def losses(axis: Axes, rows: pd.DataFrame, tested: pd.DataFrame, splits: Splits, more: str, size: float = 5) -> None:
    """Training loss, smoothed, and the test losses with their bands, on a logarithmic axis.

    rows: those of the metric `loss`; tested: mean, low and high of the test losses by split and step. Smoothed is the
    mean from 2/3 to 4/3 of a step.
    """
    train = rows[rows["split"] == "train"].groupby("step")["value"].mean()
    smoothed = [train.loc[t * 2 / 3 : t * 4 / 3].mean() for t in train.index]
    axis.plot(train.index, smoothed, color=COLOURS["train"], linewidth=1.2, label="training, smoothed")
    by_split(axis, tested, splits, more, size)
    step_axis(axis, tested["step"].unique())
    axis.set(ylabel="loss (nats a token)", yscale="log")
    log_ticks(axis.yaxis, 1, 1.5, 2, 3, 5, 7)


def by_module(angles: pd.DataFrame) -> pd.DataFrame:
    """Mean angles in degrees as a table of modules by layer; angles: columns module, layer, value (radians)."""
    angles = angles.assign(module=angles["module"].astype(str), value=np.degrees(angles["value"]))
    table = angles.pivot_table(index="module", columns="layer", values="value", observed=True)
    return table.reindex([m for m in MODULE_ORDER if m in table.index])


def module_map(axis: Axes, table: pd.DataFrame, top: float, **more: Any) -> None:
    """A heat map of a table of modules by layer, from 0 to `top`; with its numbers, if they have room."""
    look = {"fmt": ".1f", "annot": table.shape[1] <= 8, "cbar_kws": {"label": "mean principal angle (°)"}, **more}
    sns.heatmap(table, ax=axis, cmap="viridis", vmin=0, vmax=top, **look)
    axis.set(xlabel="layer", ylabel="")
    axis.tick_params(axis="y", rotation=0)


def mark_peak(axis: Axes, step: float, text: str) -> None:
    """A line at the step and a text beside it, on the side with more room: call after `step_axis`."""
    axis.axvline(step, color=GREY, linestyle=":", linewidth=1.2)
    across = axis.transAxes.inverted().transform(axis.transData.transform((step, 1)))[0]
    shift, side = (8, "left") if across < 0.6 else (-8, "right")
    axis.annotate(
        text, (step, 0.98), xycoords=axis.get_xaxis_transform(), xytext=(shift, 0), textcoords="offset points",
        va="top", ha=side,
    )  # fmt: skip


def step_axis(axis: Axes, steps: Iterable[float], first: float | None = None, last: float | None = None) -> None:
    """A symmetric-log step axis (early checkpoints are dense), with the steps that have room as its ticks."""
    steps = sorted(float(s) for s in steps)
    axis.set_xscale("symlog", linthresh=min(s for s in steps if s > 0), linscale=0.5)
    axis.set_xlim(steps[0] if first is None else first, steps[-1] * 1.08 if last is None else last)
    shown = [steps[i] for i in with_room(axis, steps)]
    axis.set_xticks(shown, [f"{step:.0f}" for step in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("SFT step (log scale)")


def with_room(axis: Axes, places: Sequence[float]) -> list[int]:
    """Which of the ascending places can carry a label, in the axis' present scale; the last always does."""
    across = axis.transData.transform([(place, 1) for place in places])[:, 0] / axis.figure.dpi
    kept = [len(places) - 1]
    for i in reversed(range(len(places))):
        if across[kept[-1]] - across[i] > 0.36:  # inches: a label of three digits takes so much
            kept.append(i)
    return kept[::-1]


def log_ticks(axis: Axis, *leading: float) -> None:
    """Ticks of a logarithmic axis at these leading digits, written out."""
    axis.set_major_locator(LogLocator(subs=leading))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def percent(axis: Axis) -> None:
    """Ticks in whole percent."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0))
