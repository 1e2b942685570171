"""The figure of the scorecard: of each claim both tests, with verdict, estimate and the paper's number."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oodlib.analysis.claims import TESTS, Claim, by_claim, in_unit, interval
from oodlib.plots.style import GREY, VERDICT_COLOURS, WIDTH

COLUMNS = (0.0, 0.05, 0.315, 0.665)  # of the claim's number, its title and the two tests
LINE = 0.175  # inches


def scorecard(claims: list[Claim]) -> Figure:
    """The verdicts as a table: a row a claim, a column a test."""
    rows = []
    for tests in by_claim(claims):
        first = next(iter(tests.values()))
        cells = [_cell(tests[test]) if test in tests else [("–", GREY)] for test in TESTS]
        title = [(line, "black") for line in textwrap.wrap(first.title, 30)]
        version = [(line, GREY) for line in textwrap.wrap(first.version, 30)]
        rows.append([[(first.claim, "black")], title + version, *cells])
    heights = [max(map(len, row)) + 0.7 for row in rows]
    figure, axis = plt.subplots(figsize=(WIDTH, LINE * (sum(heights) + 2)), layout="constrained")
    axis.set(xlim=(0, 1), ylim=(sum(heights), -1.6))
    axis.axis("off")
    for x, head in zip(COLUMNS, ("", "claim", *TESTS.values()), strict=True):
        axis.text(x, -0.8, head, weight="bold", va="center", fontsize=10)
    top = 0.0
    for row, height in zip(rows, heights, strict=True):
        axis.axhline(top, color="#DDDDDD", linewidth=0.8)
        for x, cell in zip(COLUMNS, row, strict=True):
            for i, (line, colour) in enumerate(cell):
                bold = x == 0 or colour in VERDICT_COLOURS.values()
                small = {"fontsize": 8.5 if colour == GREY else 9.5, "weight": "bold" if bold else "normal"}
                axis.text(x, top + 0.85 + i, line, va="center", color=colour, **small)
        top += height
    return figure


def _cell(c: Claim) -> list[tuple[str, str]]:
    """A test's lines, each with its colour."""
    paper = in_unit(c.unit, c.paper)
    told = textwrap.wrap(c.quantity or c.sentence, 48)
    measured = [(interval(c) + (paper and f" (paper {paper})"), "black")] if c.quantity else []
    return [(c.verdict, VERDICT_COLOURS[c.verdict]), *measured, *((line, GREY) for line in told)]
