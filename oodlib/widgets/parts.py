"""What the widgets are made of: HTML, pictures, accessibility, and a button that trains missing models."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import Javascript, display
from matplotlib.figure import Figure

from oodlib.io import as_png
from oodlib.plots.style import OUTCOME_COLOURS
from oodlib.widgets.models import Models

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
# And JupyterLab would take a list's arrow keys for its own (jupyter-widgets/ipywidgets#3912): they stay in the widget.
ACCESS = """
const keep = event => event.ctrlKey || event.metaKey || event.stopPropagation();
const mend = () => {
  document.querySelectorAll('.oodlib-widget .widget-slider').forEach(slider => slider.querySelector('.noUi-handle')
    ?.setAttribute('aria-label', slider.querySelector('.widget-label').textContent));
  document.querySelectorAll('.oodlib-widget').forEach(widget => widget.onkeydown = keep);
};
mend();
const area = element.closest('.jp-OutputArea') || document.body;
new MutationObserver(mend).observe(area, {childList: true, subtree: true});
"""


def show_widget(name: str, controls: list[widgets.Widget], result: widgets.Widget, still: Figure | str) -> None:
    """Display a widget where a person can operate it (Jupyter, VS Code), and its picture or HTML where none can."""
    row = widgets.HBox(controls, layout={"flex_flow": "row wrap", "align_items": "center"})
    box = widgets.VBox([row, result])
    box.add_class("oodlib-widget").add_class(f"oodlib-{name}")
    shown = {"text/html": still} if isinstance(still, str) else {"image/png": _base64(still)}
    shown["text/plain"] = f"what the widget {name} shows at first"
    if somebody():
        shown |= box._repr_mimebundle_()
    display(shown, raw=True)
    make_accessible()


def make_accessible() -> None:
    """Give the sliders shown so far a name that screen readers say, and the widgets the keys pressed in them."""
    if somebody():
        display(Javascript(ACCESS))


def somebody() -> bool:
    """Whether a person can operate widgets here: the kernel was started by Jupyter's server or by VS Code."""
    return bool({"JPY_SESSION_NAME", "VSCODE_PID"} & set(os.environ))


def checkpoints_needed(models: Models, names: list[str], ready: Callable[[], None]) -> widgets.VBox:
    """Says which checkpoints are missing, and trains them at a button's press; then, or if none is, calls `ready`."""
    missing = models.missing(*names)
    if not missing:
        ready()
        return widgets.VBox([])
    note = widgets.HTML(
        on_paper(
            f"Not trained here yet: {escape(', '.join(missing))}. The button trains them (preset tiny: about "
            "four minutes on two cores); so does <code>make reproduce</code>."
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
