"""The widget `surgery`: singular values or vectors of the peak put back into the last SFT checkpoint."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any

import ipywidgets as widgets

from oodlib.plots import widgets as figures
from oodlib.run import Run
from oodlib.widgets import parts
from oodlib.widgets.models import Bench, Models


def surgery(run: Run, seed: int | None = None) -> None:
    """Put singular values or vectors of the peak back into the last SFT checkpoint, and see how it then plays.

    At once on `models.SAMPLE` hands of each split, with the interval that so few allow; at a button's press on all.
    """
    models = Models(run, seed)
    _, donor, recipient, *_ = models.keys
    accuracy = run.table("measurements").query("stage == 'sft' and metric == 'accuracy' and seed == @models.seed")
    known = {
        name: accuracy[accuracy["step"] == step].set_index("split")["value"].to_dict()
        for name, step in (("end", models.end), ("peak", models.peak))
    }
    bench = cache(lambda: Bench(models.folder(recipient), models.folder(donor), run.config, embeddings=True))
    part = widgets.Dropdown(options=["vectors", "values"], description="restore", layout={"width": "190px"})
    top = widgets.IntSlider(100, 0, 100, 5, description="leading %", continuous_update=False)
    tail = widgets.IntSlider(0, 0, 100, 5, description="trailing %", continuous_update=False)
    layers = widgets.SelectMultiple(description="layers", rows=4, layout={"width": "170px"})
    outer = widgets.Checkbox(True, description="embeddings too", indent=False, layout={"width": "150px"})
    every = widgets.Button(description="measure on all hands", layout={"width": "auto"})
    result = parts.result_area()

    controls = [part, top, tail, layers, outer, every]

    def edit(_: Any = None, all_hands: bool = False) -> None:
        if top.value + tail.value > 100:
            result.value = parts.on_paper("Leading and trailing directions overlap: their sum is at most 100 %.")
            return
        chosen = (*layers.value, *([None] if outer.value else []))
        measured, hands = bench().measure(part.value, top.value / 100, tail.value / 100, chosen, all_hands)
        named = ", ".join("embeddings" if layer is None else str(layer) for layer in chosen) or "none"
        title = f"{part.value}: leading {top.value} %, trailing {tail.value} %, layers {named}"
        said = ", ".join(f"{run.splits[s].label} {v:.1%} [{a:.1%}, {b:.1%}]" for s, (v, a, b) in measured.items())
        text = f"{title}. Accuracy of the edited model on {hands}: {said}."
        picture = parts.as_picture(figures.edited(measured, known, title, run.splits), text)
        result.value = parts.on_paper(f"{picture}<p>{escape(text)}</p>")

    def ready() -> None:
        layers.options = bench().layers
        layers.value = bench().layers
        for control in controls:
            control.disabled = False
            if control is not every:
                control.observe(edit, "value")
        edit()

    for control in controls:
        control.disabled = True
    every.on_click(lambda _: edit(all_hands=True))
    needs = parts.checkpoints_needed(models, [recipient, donor], ready)
    still = parts.on_paper("Open this notebook in Jupyter to edit the model; the table above has the run's own edits.")
    parts.show_widget("surgery", controls, widgets.VBox([needs, result]), still)
