"""The look of all figures and tables: labels, colours, and `neat`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from pandas.io.formats.style import Styler

from oodlib.registry import BASELINES
from oodlib.tasks import OUTCOMES, Split
from oodlib.training.baselines import Baseline

# One colour means one thing in every figure (Okabe and Ito's palette, safe for colour-blind readers).
# A split's label and colour stand in its task, a baseline's where it is defined (`oodlib.registry.BASELINES`).
COLOURS = {
    "train": "#7F7F7F",
    "sft": "#000000",
    "start": "#000000",
    "rl": "#009E73",
    "paper": "#8C6BB1",
    "vectors": "#CC79A7",
    "values": "#B8A800",
    "whole": "#332288",
    "random": "#7F7F7F",
    "signs": "#4B4B4B",
    "noise": "#B5B5B5",
}
LABELS = {
    "train": "training",
    "sft": "SFT checkpoint",
    "start": "SFT checkpoint",
    "rl": "after RL",
}
GREY = "#555555"  # of reference lines, and of what has no colour of its own
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


# ---- splits, arms, edits ---------------------------------------------------------------------------------


def label(of: str | Split) -> str:
    """What figures and tables call a split, an arm or an edit."""
    if isinstance(of, Split):
        return of.label
    if of in LABELS or not (baseline := _baseline(of)):
        return LABELS.get(of, of)
    return f"baseline: {baseline.label}" if baseline.counts else baseline.label


def colour(of: str | Split) -> str:
    """The colour of a split, an arm or an edit."""
    if isinstance(of, Split):
        return of.colour
    if of in COLOURS or not (baseline := _baseline(of)):
        return COLOURS.get(of, GREY)
    return baseline.colour


def in_order(arms: Iterable[str]) -> list[str]:
    """The start, RL, the baselines that train, the others that count, the oracles; each once."""

    def rank(arm: str) -> tuple:
        counts, trains = (b.counts, b.trains) if (b := _baseline(arm)) else (True, False)
        return arm != "start", arm != "rl", not counts, not trains, arm

    return sorted(set(arms), key=rank)


@cache
def _baseline(name: str) -> Baseline | None:
    """None where it is none, or its package is not here: a finished run's figures do not need it."""
    try:
        return BASELINES.get(name)
    except ValueError:
        return None
