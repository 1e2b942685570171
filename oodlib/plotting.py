"""What all figures share: the look, the colours, and pieces of axes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter
from scipy.stats import binomtest

from oodlib.tasks import OUTCOMES

# One colour means one thing everywhere (Okabe and Ito's palette, safe for colour-blind readers).
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
    "vectors": "#D55E00",
    "values": "#0072B2",
    "random": "#7F7F7F",
    "noise": "#CC79A7",
}
NAMES = {
    "id": "ID",
    "ood": "OOD",
    "train": "training",
    "sft": "SFT checkpoint",
    "rl": "after RL",
    "sft_continued": "control: SFT continued",
    "rejection_sampling": "control: rejection sampling",
    "averaging": "rival: last checkpoints averaged",
    "interpolation_base": "rival: half-way to the base",
    "interpolation_peak": "oracle: half-way to the peak",
    "random_reward": "rival: RL, random reward",
    "format_reward": "rival: RL, format reward",
}
OUTCOME_COLOURS = dict(zip(OUTCOMES, ("#009E73", "#F0E442", "#E69F00", "#CC79A7", "#999999"), strict=True))
MODULE_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VERDICT_COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": "#7F7F7F"}


def style() -> None:
    """The look of all figures: call once before drawing."""
    sns.set_theme(context="notebook", style="ticks", font_scale=1.0)
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


def sft_rows(measurements: pd.DataFrame, metric: str) -> pd.DataFrame:
    return measurements[(measurements["stage"] == "sft") & (measurements["metric"] == metric)]


def draw_line(axis: Axes, data: pd.DataFrame, kind: str, label: str | None = None, markersize: float = 5) -> None:
    data = data.sort_values("step")
    name = label or NAMES.get(kind, kind)
    axis.plot(data["step"], data["mean"], "o-", color=COLOURS[kind], label=name, markersize=markersize)
    axis.fill_between(data["step"], data["low"], data["high"], color=COLOURS[kind], alpha=0.18, linewidth=0)


def mark_peak(axis: Axes, step: float, text: str) -> None:
    axis.axvline(step, color="#555555", linestyle=":", linewidth=1.2)
    axis.annotate(
        text, (step, 0.98), xycoords=axis.get_xaxis_transform(), xytext=(8, 0), textcoords="offset points", va="top"
    )


def step_axis(axis: Axes, steps, first: float | None = None, last: float | None = None) -> None:
    """A symmetric-log step axis (early checkpoints are dense) with plain tick labels."""
    steps = sorted(float(s) for s in steps)
    positive = [s for s in steps if s > 0]
    axis.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    low, high = (steps[0] if first is None else first), (steps[-1] * 1.08 if last is None else last)
    axis.set_xlim(low, high)
    places = axis.transAxes.inverted().transform(axis.transData.transform([(step, 0) for step in steps]))[:, 0]
    width = axis.get_figure().get_figwidth() / axis.get_subplotspec().get_geometry()[1]
    ticks, before = [], np.inf
    for step, place in zip(steps[::-1], places[::-1], strict=True):  # the last step always gets its label
        if (before - place) * width > 0.36:
            ticks.append(step)
            before = place
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel("SFT step")


def percent(axis: Axis) -> None:
    """Ticks in whole percent."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def wilson_band(share: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    found = [binomtest(round(float(s) * n), n).proportion_ci(method="wilson") for s in share]
    return np.array([f.low for f in found]), np.array([f.high for f in found])
