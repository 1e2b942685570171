"""What the widgets are made of: HTML, pictures, accessibility, and a button that trains missing models."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Javascript, display
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from oodlib.io import as_png
from oodlib.plots.style import OUTCOME_COLOURS, neat
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


def as_table(table: pd.DataFrame, words: str) -> Styler:
    """A table, to be refined and then rendered, whose cells are HTML; those of the column `words` may be broken."""
    return neat(table, words=(words,)).format(None)


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
    if not os.environ.keys() & {"JPY_SESSION_NAME", "VSCODE_PID"}:  # set where Jupyter's server or VS Code is at work
        display(shown, raw=True)
        return
    display(shown | box._repr_mimebundle_(), raw=True)
    display(Javascript(ACCESS))


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
