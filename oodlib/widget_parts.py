"""What the widgets are made of: HTML, pictures, and the models that they need."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Javascript, display
from matplotlib.figure import Figure

from oodlib.plotting import OUTCOME_COLOURS
from oodlib.rl import arm_folder, run_arm
from oodlib.runs import Run, as_png
from oodlib.sft import peak_step, sft_folder, train
from oodlib.stages import at_hand, ensure, quiet

WIDE = {"description_width": "initial"}


def _base64(figure: Figure) -> str:
    data = base64.b64encode(as_png(figure)).decode()
    plt.close(figure)
    return data


def as_picture(figure: Figure, alt: str) -> str:
    data = _base64(figure)
    return f'<img style="max-width: 100%" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def result_area() -> widgets.HTML:
    shown = widgets.HTML()  # not an Output: that one makes papermill wait for ever
    shown.add_class("oodlib-result")
    return shown


def on_paper(text: str) -> str:
    """Black on white in a dark theme too, for the colours of outcomes are made for it."""
    return f'<div style="background: #fff; color: #000; padding: 8px; line-height: 1.6">{text}</div>'


def as_table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already; the first of a row names it."""
    plain = "text-align: left; vertical-align: top; padding: 1px 16px 1px 0"
    cell = f'style="{plain}; white-space: nowrap"'
    top = "".join(f'<th scope="col" {cell}>{head}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row" {cell}>{first}</th>'
        + "".join(f"<td {cell}>{text}</td>" for text in others)
        + f'<td style="{plain}">{last}</td></tr>'  # alone may be broken into lines
        for first, *others, last in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def as_outcome(outcome: str, more: str = "") -> str:
    dot = f'<span aria-hidden="true" style="color: {OUTCOME_COLOURS[outcome]}">⬤</span>'
    return f"{dot} {outcome.replace('_', ' ')}{more}"


def as_code(text: Any) -> str:
    return f"<code>{escape(str(text).strip())}</code>"


# ipywidgets has no way to name a slider's handle for a screen reader; its label says it, so take it from there.
NAME_SLIDERS = """
const name = () => document.querySelectorAll('.oodlib-widget .widget-slider').forEach(slider =>
  slider.querySelector('.noUi-handle')?.setAttribute('aria-label', slider.querySelector('.widget-label').textContent));
name();
const area = element.closest('.jp-OutputArea') || document.body;
new MutationObserver(name).observe(area, {childList: true, subtree: true});
"""


def show_widget(kind: str, controls: list[widgets.Widget], result: widgets.Widget, picture: Figure) -> None:
    """Display a widget where a person sits before it (Jupyter, VS Code), and its picture where none does."""
    row = widgets.HBox(controls, layout={"flex_flow": "row wrap", "align_items": "center"})
    box = widgets.VBox([row, result])
    box.add_class("oodlib-widget").add_class(f"oodlib-{kind}")
    shown = {"image/png": _base64(picture), "text/plain": f"the widget {kind}, as a picture"}
    if somebody():
        shown |= box._repr_mimebundle_()
    display(shown, raw=True)
    name_sliders()


def name_sliders() -> None:
    """Give the sliders shown so far a name that screen readers say."""
    if somebody():
        display(Javascript(NAME_SLIDERS))


def somebody() -> bool:
    """Whether a person can operate widgets here: the kernel was started by Jupyter's server or by VS Code."""
    return bool({"JPY_SESSION_NAME", "VSCODE_PID"} & set(os.environ))


# ---- models --------------------------------------------------------------------------------------------


class Models:
    """The four models of a seed's story, and how to make those that are not there; the base alone before SFT."""

    def __init__(self, run: Run, seed: int | None):
        self.run, self.seed = run, run.preset.seed if seed is None else seed
        self.keys = {"base": ("sft", "sft", 0, 0)}
        quiet()
        for stage in ("sft", "rl"):
            if at_hand(run, stage):
                ensure(run, stage)
        if "sft" not in run.sources:
            return
        self.peak, self.end = peak_step(run.table("measurements"), self.seed), run.preset.sft_steps
        later = [step for step in sorted(run.preset.rl_from) if step > self.peak]
        self.start = later[len(later) // 2] if later else max(run.preset.rl_from)  # amid the fall, if one is
        self.keys |= {
            f"OOD peak (step {self.peak})": ("sft", "sft", 0, self.peak),
            f"end of SFT (step {self.end})": ("sft", "sft", 0, self.end),
        }
        if "rl" in run.sources:
            self.keys[f"RL from step {self.start}"] = ("rl", "rl", self.start, run.preset.rl_steps)

    def folder(self, name: str) -> Path:
        stage, arm, from_step, step = self.keys[name]
        if stage == "rl":
            return arm_folder(self.run, self.seed, arm, from_step)
        return sft_folder(self.run, self.seed, step)

    def missing(self, *names: str) -> list[str]:
        return [name for name in names or self.keys if not (self.folder(name) / "config.json").exists()]

    def there(self) -> list[str]:
        missing = self.missing()
        return [name for name in self.keys if name not in missing]

    def make(self, names: list[str], told: Callable[[float], None]) -> None:
        """Train what `names` need, resuming what was begun; `told` hears the share that is done."""
        steps, stop = self.run.preset.sft_checkpoints[1:], threading.Event()

        def watch() -> None:
            while not stop.wait(1):
                told(np.mean([sft_folder(self.run, self.seed, step).exists() for step in steps]))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            train(self.run, self.seed)
            if any(self.keys[name][0] == "rl" for name in names):
                run_arm(self.run, self.seed, "rl", self.start)
        finally:
            stop.set()
            watching.join()


def checkpoints_needed(models: Models, names: list[str], ready: Callable[[], None]) -> widgets.VBox:
    """Says which checkpoints are missing, and trains them at a button's press; then, or if none is, calls `ready`."""
    missing = models.missing(*names)
    if not missing:
        ready()
        return widgets.VBox([])
    note = widgets.HTML(
        on_paper(
            f"Not trained here yet: {escape(', '.join(missing))}. The button trains them (preset tiny: about "
            "three minutes on two cores); so does <code>make reproduce</code>."
        )
    )
    button = widgets.Button(description="train them", tooltip="train the missing checkpoints")
    bar = widgets.FloatProgress(max=1, description="training", layout={"visibility": "hidden"})
    box = widgets.VBox([note, widgets.HBox([button, bar])])

    def pressed(_: Any) -> None:
        button.disabled, bar.layout.visibility = True, "visible"
        try:
            models.make(missing, lambda share: setattr(bar, "value", share))
        except Exception as error:  # shown where the person looks
            note.value = on_paper(f"Training stopped: {escape(f'{type(error).__name__}: {error}')}")
            button.disabled = False
            return
        box.children = []
        ready()

    button.on_click(pressed)
    return box
