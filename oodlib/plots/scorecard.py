"""The figure of the scorecard: claims, estimates, the paper's numbers, verdicts."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oodlib.analysis.claims import Claim, in_unit, interval
from oodlib.plots.style import VERDICT_COLOURS, WIDTH


def scorecard(claims: list[Claim]) -> Figure:
    """The verdicts as a table."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.74 * len(claims) + 0.4), layout="constrained")
    axis.set(xlim=(0, 1), ylim=(len(claims), -0.5))
    axis.axis("off")
    columns = (0.0, 0.535, 0.78, 0.855)
    for x, head in zip(columns, ("claim", "estimate [95 % interval]", "paper", "verdict"), strict=True):
        axis.text(x, -0.3, head, weight="bold", va="center", fontsize=10)
    for i, claim in enumerate(claims):
        axis.axhline(i, color="#DDDDDD", linewidth=0.8)
        title = textwrap.wrap(claim.title, 54)
        axis.text(0.0, i + 0.12, claim.claim, weight="bold", va="top", fontsize=10)
        axis.text(0.045, i + 0.12, "\n".join(title), va="top", fontsize=10)
        below = i + 0.12 + 0.23 * len(title)  # a line is 0.23 of a row
        axis.text(0.045, below, textwrap.fill(claim.quantity, 58), va="top", fontsize=10, color="#666666")
        for x, text in zip(columns[1:], (interval(claim), in_unit(claim.unit, claim.paper)), strict=False):
            axis.text(x, i + 0.12, text, va="top", fontsize=10)
        colour = VERDICT_COLOURS[claim.verdict]
        axis.text(columns[3], i + 0.12, claim.verdict, va="top", fontsize=10, color=colour, weight="bold")
    return figure
