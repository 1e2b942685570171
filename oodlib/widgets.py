"""Widgets of the notebooks, a line each."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from oodlib.episodes import as_text, generate
from oodlib.tasks import Task


def play(task: Task, model: Any, tokenizer: Any, max_new_tokens: int = 32) -> None:
    """Deal a hand, choose what J, Q and K count for, and see the model's answer beside the checker's verdict."""
    hand = widgets.Text("5 5 5 A", description="hand", layout={"width": "180px"})
    worth = {
        f: widgets.BoundedIntText(v, min=1, max=13, description=f) for f, v in zip("JQK", (11, 12, 13), strict=True)
    }
    for box in worth.values():
        box.layout.width = "150px"
    button = widgets.Button(description="play", button_style="primary")
    shown = widgets.HTML()  # not an Output: that one makes papermill wait for ever

    def answer(_: Any = None) -> None:
        try:
            problem = task.problem(hand.value.split(), {f: box.value for f, box in worth.items()})
        except ValueError as error:
            shown.value = f"<pre>{escape(str(error))}</pre>"
            return
        prompt = as_text(task.prompt(problem, "compact"), tokenizer)
        lines = []
        for wanted in ("json", "cards numbers formula"):
            text = generate(model, tokenizer, [prompt.replace("as json", f"as {wanted}")], max_new_tokens)[0]
            given = '"formula"' in text
            verdict = task.verify(problem, text) if given else task.verify_formula(problem, text.split(";")[-1])
            lines += [f"asked for {wanted}:", f"    {text}", f"    {verdict.message}"]
        lines.append("all solutions: " + (", ".join(task.solutions(problem.numbers)) or "none"))
        shown.value = f"<pre>{escape(chr(10).join(lines))}</pre>"

    button.on_click(answer)
    answer()
    display(widgets.VBox([widgets.HBox([hand, *worth.values(), button]), shown]))
