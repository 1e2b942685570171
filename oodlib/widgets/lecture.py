"""The lecture's own tools: a guess before the measurement, and the paper's numbers beside this run's."""

from __future__ import annotations

from html import escape

import ipywidgets as widgets
import pandas as pd
from pandas.io.formats.style import Styler

from oodlib.analysis import claims
from oodlib.analysis.evidence import Evidence
from oodlib.plots.style import neat
from oodlib.widgets import parts


class Guess:
    """A question to the reader, whose guess stands beside the measurement later (`against`), and follows the slider."""

    def __init__(self, question: str, low: float = 0.0, high: float = 1.0, form: str = ".0%", unit: str = ""):
        self.question, self.form, self.unit, self.made = question, form, unit and f" {unit}", False
        step, middle = (high - low) / 100, (low + high) / 2
        self.slider = widgets.FloatSlider(
            middle, min=low, max=high, step=step, description=f"my guess{unit and f' ({unit})'}", readout_format=form,
            style=parts.WIDE, layout={"width": "420px"},
        )  # fmt: skip
        self.answer = parts.result_area()
        self.slider.observe(self._moved, "value")
        asked = parts.on_paper(escape(question))
        parts.show_widget("guess", [self.slider], widgets.HTML(asked), asked)

    def _moved(self, _: object) -> None:
        self.made = True

    def against(self, measured: float) -> None:
        """Show the measurement, and the guess beside it if one was made."""
        told = f"{self.question} Measured: {measured:{self.form}}{self.unit}."

        def say(_: object = None) -> None:
            guess = f"You guessed {self.slider.value:{self.form}}{self.unit}." if self.made else "No guess was made."
            self.answer.value = parts.on_paper(escape(f"{told} {guess}"))

        say()
        self.slider.observe(say, "value")
        parts.show_widget("answer", [], self.answer, parts.on_paper(escape(told)))


def beside_the_paper(evidence: Evidence, *names: str) -> Styler:
    """Each claim's number in the paper and in this run, for the same quantity, with 95 % interval and verdict."""
    rows = []
    for name in names:
        c = claims.judge(name, evidence)
        paper = f"{claims.in_unit(c.unit, c.paper)} {c.unit}".strip() if c.paper is not None else "no number"
        rows.append((f"{c.claim} · {c.title}", c.quantity, paper, claims.interval(c), c.verdict))
    columns = ["claim", "quantity", "the paper", "this run [95 %]", "verdict here"]
    return neat(pd.DataFrame(rows, columns=columns), words=("claim", "quantity", "verdict here"))
