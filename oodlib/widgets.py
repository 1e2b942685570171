"""Widgets of the notebooks, a line each."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
from IPython.display import display

from oodlib.evaluate import as_text, generate
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
    shown = widgets.Output()

    def answer(_: Any = None) -> None:
        shown.clear_output()
        with shown:
            try:
                problem = task.problem(hand.value.split(), {f: box.value for f, box in worth.items()})
            except ValueError as error:
                print(error)
                return
            prompt = as_text(task.prompt(problem, "compact"), tokenizer)
            plain = prompt.replace("as json", "as cards numbers formula")
            for name, asked in (("asked for JSON", prompt), ("asked for a plain answer", plain)):
                text = generate(model, tokenizer, [asked], max_new_tokens)[0]
                formula = text.split(";")[-1] if '"formula"' not in text else None
                verdict = task.verify(problem, text) if formula is None else task.verify_formula(problem, formula)
                print(f"{name}: {text}\n    {verdict.message}")
            print("all solutions:", ", ".join(task.solutions(problem.numbers)) or "none")

    button.on_click(answer)
    display(widgets.VBox([widgets.HBox([hand, *worth.values(), button]), shown]))
    answer()
