"""The lecture's own tools: a guess before the measurement, and the paper's numbers beside this run's."""

from __future__ import annotations

from html import escape

import ipywidgets as widgets
import pandas as pd
from IPython.display import Markdown, display
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
        self.slider.observe(self._moved, "value")
        if parts.somebody():
            box = widgets.VBox([widgets.HTML(parts.on_paper(escape(question))), self.slider])
            box.add_class("oodlib-widget").add_class("oodlib-guess")
            display(box)
            parts.make_accessible()
        else:
            display(Markdown(f"*Your guess:* {question}"))

    def _moved(self, _: object) -> None:
        self.made = True

    def against(self, measured: float) -> None:
        """Show the measurement, and the guess beside it if one was made."""

        def said() -> str:
            told = f"{self.question} Measured: {measured:{self.form}}{self.unit}. "
            if not self.made:
                return told + ("No guess was made: move the slider above." if parts.somebody() else "")
            return told + f"You guessed {self.slider.value:{self.form}}{self.unit}."

        if not parts.somebody():
            display(Markdown(said()))
            return
        shown = widgets.HTML(parts.on_paper(escape(said())))
        self.slider.observe(lambda _: setattr(shown, "value", parts.on_paper(escape(said()))), "value")
        display(shown)


def beside_the_paper(evidence: Evidence, *names: str) -> Styler:
    """Each claim's number in the paper and in this run, for the same quantity, with 95 % interval and verdict."""
    rows = []
    for name in names:
        c = claims.judge(name, evidence)
        paper = f"{claims.in_unit(c.unit, c.paper)} {c.unit}".strip() if c.paper is not None else "no number"
        rows.append((f"{c.claim} · {c.title}", c.quantity, paper, claims.interval(c), c.verdict))
    columns = ["claim", "quantity", "the paper", "this run [95 %]", "verdict here"]
    return neat(pd.DataFrame(rows, columns=columns), words=("claim", "quantity", "verdict here"))
