"""Pieces of figures: lines with bands, estimates with intervals, maps of modules, axes of steps."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter
from scipy.stats import binomtest

from oodlib.analysis.stats import Estimate
from oodlib.plots.style import COLOURS, GREY, LABELS, MODULE_ORDER, WIDTH, colour, label


def panels(count: int, width: float, height: float, more: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A figure of `count` panels that share the y axis, at most three in a row, and its axes [rows, columns].

    width, height: inches of a panel; more: of the figure, besides.
    """
    columns = min(count, 3)
    rows = -(-count // columns)
    size = (min(WIDTH, width * columns), height * rows + more)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes


def legend_below(figure: Figure, axis: Axes, columns: int) -> None:
    """The legend of one axis under the whole figure."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def line(axis: Axes, data: pd.DataFrame, arm: str, name: str | None = None, size: float = 5) -> None:
    """Mean and band (columns step, mean, low, high) of a split, an arm or an edit."""
    data = data.sort_values("step")
    axis.plot(data["step"], data["mean"], "o-", color=colour(arm), label=name or label(arm), markersize=size)
    axis.fill_between(data["step"], data["low"], data["high"], color=colour(arm), alpha=0.18, linewidth=0)


def splits(axis: Axes, data: pd.DataFrame, more: str = "", size: float = 5) -> None:
    """The `line` of each split."""
    for split in ("id", "ood"):
        line(axis, data[data["split"] == split], split, LABELS[split] + more, size)


def bars(axis: Axes, data: pd.DataFrame, arm: str, look: str, shift: float = 1, **more: Any) -> None:
    """Means with error bars (columns from_step, mean, low, high) of an arm, by the step from which it starts."""
    data = data.sort_values("from_step")
    ends = [data["mean"] - data["low"], data["high"] - data["mean"]]
    axis.errorbar(shift * data["from_step"], data["mean"], ends, fmt=look, color=colour(arm), capsize=3, **more)


def middle_half(axis: Axes, curves: pd.DataFrame, look: str, hue: Any, name: str, alpha: float = 0.12) -> None:
    """The median of a bundle of curves, and the band that holds its middle half; curves: columns 0.25, 0.5, 0.75."""
    axis.plot(curves.index, curves[0.5], look, color=hue, label=name)
    axis.fill_between(curves.index, curves[0.25], curves[0.75], color=hue, alpha=alpha, linewidth=0)


def estimate(axis: Axes, x: Estimate, y: float, hue: str, mark: str = "o", size: float = 7, **more: Any) -> None:
    """A mark with its interval, at the height y."""
    axis.plot([x.low, x.high], [y, y], color=hue, linewidth=2)
    axis.plot(x.value, y, mark, color=hue, markersize=size, **more)


def cross(axis: Axes, x: Estimate, y: Estimate, hue: str, mark: str, size: float = 8, **more: Any) -> None:
    """A mark with an interval either way."""
    axis.plot([x.low, x.high], [y.value] * 2, color=hue, linewidth=1.4)
    axis.plot([x.value] * 2, [y.low, y.high], color=hue, linewidth=1.4)
    axis.plot(x.value, y.value, mark, color=hue, markersize=size, **more)


def losses(axis: Axes, rows: pd.DataFrame, tested: pd.DataFrame, more: str, size: float = 5) -> None:
    """Training loss, smoothed, and the test losses with their bands, on a logarithmic axis.

    rows: those of the metric `loss`; tested: mean, low and high of the test losses by split and step. Smoothed is the
    mean from 2/3 to 4/3 of a step.
    """
    train = rows[rows["split"] == "train"].groupby("step")["value"].mean()
    smoothed = [train.loc[t * 2 / 3 : t * 4 / 3].mean() for t in train.index]
    axis.plot(train.index, smoothed, color=COLOURS["train"], linewidth=1.2, label="training, smoothed")
    splits(axis, tested, more, size)
    step_axis(axis, tested["step"].unique())
    axis.set(ylabel="loss (nats a token)", yscale="log")
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter(ScalarFormatter())
    axis.tick_params(axis="y", which="minor", labelsize=9)


def by_module(angles: pd.DataFrame) -> pd.DataFrame:
    """Mean angles in degrees as a table of modules by layer; angles: columns module, layer, value (radians)."""
    angles = angles.assign(module=angles["module"].astype(str), value=np.degrees(angles["value"]))
    table = angles.pivot_table(index="module", columns="layer", values="value", observed=True)
    return table.reindex([m for m in MODULE_ORDER if m in table.index])


def module_map(axis: Axes, table: pd.DataFrame, top: float, bar: bool, annot: bool, **more: Any) -> None:
    """A heat map of a table of modules by layer, from 0 to `top`."""
    look = {"fmt": ".1f", "cbar_kws": {"label": "mean principal angle (°)"}, **more}
    sns.heatmap(table, ax=axis, cmap="viridis", vmin=0, vmax=top, cbar=bar, annot=annot, **look)
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


def step_axis(axis: Axes, steps, first: float | None = None, last: float | None = None) -> None:
    """A symmetric-log step axis (early checkpoints are dense) with plain tick labels."""
    steps = sorted(float(s) for s in steps)
    positive = [s for s in steps if s > 0]
    axis.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    low, high = (steps[0] if first is None else first), (steps[-1] * 1.08 if last is None else last)
    axis.set_xlim(low, high)
    axis.xaxis.set_major_locator(FixedLocator([steps[i] for i in _with_room(axis, steps, steps)]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("SFT step")


def steps_above(axis: Axes, places: pd.Series) -> None:
    """A second axis on top that says which SFT step lies where; places: x by step, in the axis' present scale."""
    places = places.sort_values()
    shown = places.iloc[_with_room(axis, places.to_numpy(), places.index)]
    above = axis.secondary_xaxis("top")
    above.xaxis.set_major_locator(FixedLocator(shown))
    above.xaxis.set_minor_locator(NullLocator())
    above.xaxis.set_major_formatter(FixedFormatter([f"{step}" for step in shown.index]))
    above.set_xlabel("SFT step")


def _with_room(axis: Axes, places, steps) -> list[int]:
    """Which of the ascending places can carry their step as a label; the last always does."""
    points = axis.transData.transform([(place, 1) for place in places])
    across = axis.transAxes.inverted().transform(points)[:, 0]
    spec = axis.get_subplotspec()
    shares = np.array(spec.get_gridspec().get_width_ratios() or np.ones(spec.get_geometry()[1]), dtype=float)
    inches = 0.8 * axis.get_figure().get_figwidth() * shares[spec.colspan.start] / shares.sum()
    kept, before = [], np.inf
    for i in reversed(range(len(steps))):
        half = 0.045 * len(f"{steps[i]:.0f}") + 0.05  # inches: a digit is about 0.09 wide
        if across[i] * inches + half < before:
            kept.append(i)
            before = across[i] * inches - half
    return kept[::-1]


def percent(axis: Axis) -> None:
    """Ticks in whole percent."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def wilson_band(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of each share of `n` problems: the lower ends, the upper ends."""
    intervals = [binomtest(round(float(s) * n), n).proportion_ci(method="wilson") for s in share]
    return np.array([i.low for i in intervals]), np.array([i.high for i in intervals])
