"""What all figures and tables share: the look, the colours, and pieces of axes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter
from pandas.io.formats.style import Styler
from scipy.stats import binomtest

from oodlib.tasks import OUTCOMES

# One colour means one thing in every figure (Okabe and Ito's palette, safe for colour-blind readers).
COLOURS = {
    "id": "#0072B2",
    "ood": "#D55E00",
    "train": "#7F7F7F",
    "sft": "#000000",
    "rl": "#009E73",
    "sft_continued": "#E69F00",
    "rejection_sampling": "#56B4E9",
    "averaging": "#CC79A7",
    "interpolation_base": "#A0522D",
    "interpolation_peak": "#8C6BB1",
    "random_reward": "#7F7F7F",
    "format_reward": "#B8A800",
    "paper": "#8C6BB1",
    "vectors": "#CC79A7",
    "values": "#B8A800",
    "random": "#7F7F7F",
    "signs": "#4B4B4B",
    "noise": "#B5B5B5",
}
NAMES = {
    "id": "ID",
    "ood": "OOD",
    "train": "training",
    "sft": "SFT checkpoint",
    "rl": "after RL",
    "sft_continued": "control: SFT continued",
    "rejection_sampling": "control: rejection sampling",
    "averaging": "control: last checkpoints averaged",
    "interpolation_base": "control: half-way to the base",
    "interpolation_peak": "oracle: half-way to the peak",
    "random_reward": "control: RL, random reward",
    "format_reward": "control: RL, format reward",
}
OUTCOME_COLOURS = dict(zip(OUTCOMES, ("#54278F", "#CBBFE2", "#F0E442", "#8C8C8C", "#D9D9D9"), strict=True))
MODULE_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDTH = 9.2  # inches: a notebook shows a figure of this width as it is, and a wider one shrunk
VERDICT_COLOURS = {"supported": "#00695C", "not supported": "#B71C1C", "inconclusive": "#6B6B6B"}


def style() -> None:
    """The look of all figures: call once before drawing."""
    sns.set_theme(context="notebook", style="ticks", font_scale=0.92)
    plt.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "figure.dpi": 100,
            "savefig.dpi": 120,
            "savefig.bbox": "tight",
            "svg.hashsalt": "oodlib",
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
        }
    )


def neat(table: pd.DataFrame, words: tuple[str, ...] = ()) -> Styler:
    """A table to read: to the left, no cell broken in two but those of the columns `words`, "–" where nothing is."""

    def written(value: object) -> object:
        return f"{value:g}" if isinstance(value, float) else value

    shown = table.replace("", None).style.format(written, na_rep="–", escape="html")
    for axis in ("index", "columns"):
        shown = shown.format_index(axis=axis, escape="html")
    if isinstance(table.index, pd.RangeIndex):
        shown = shown.hide()
    left = {"selector": "th, td", "props": "text-align: left !important; vertical-align: top"}
    whole = [column for column in table.columns if column not in words]
    return shown.set_table_styles([left]).set_properties(subset=whole, **{"white-space": "nowrap"})


def sft_rows(measurements: pd.DataFrame, metric: str) -> pd.DataFrame:
    return measurements[(measurements["stage"] == "sft") & (measurements["metric"] == metric)]


def draw_line(axis: Axes, data: pd.DataFrame, kind: str, label: str | None = None, markersize: float = 5) -> None:
    data = data.sort_values("step")
    name = label or NAMES.get(kind, kind)
    axis.plot(data["step"], data["mean"], "o-", color=COLOURS[kind], label=name, markersize=markersize)
    axis.fill_between(data["step"], data["low"], data["high"], color=COLOURS[kind], alpha=0.18, linewidth=0)


def mark_peak(axis: Axes, step: float, text: str) -> None:
    """A line at the step and a text beside it, on the side with more room: call after `step_axis`."""
    axis.axvline(step, color="#555555", linestyle=":", linewidth=1.2)
    place = axis.transAxes.inverted().transform(axis.transData.transform((step, 1)))[0]
    shift, side = (8, "left") if place < 0.6 else (-8, "right")
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


def smoothed(curve: pd.Series) -> pd.Series:
    """A training loss by step (index), each the mean from 2/3 to 4/3 of its step."""
    return pd.Series([curve.loc[t * 2 / 3 : t * 4 / 3].mean() for t in curve.index], curve.index)


def wilson_band(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    found = [binomtest(round(float(s) * n), n).proportion_ci(method="wilson") for s in share]
    return np.array([f.low for f in found]), np.array([f.high for f in found])
