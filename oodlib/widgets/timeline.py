"""The widget `timeline`: a slider over the SFT checkpoints."""

from __future__ import annotations

from functools import cache
from typing import Any

import ipywidgets as widgets

from oodlib.plots import widgets as figures
from oodlib.run import Run
from oodlib.widgets import parts


def timeline(run: Run) -> None:
    """One slider over the SFT checkpoints moves accuracy, answers, losses and the rotation map together."""
    measurements, rotation = run.table("measurements"), run.table("rotation")
    steps = sorted(measurements.query("stage == 'sft' and metric == 'accuracy'")["step"].unique().tolist())

    @cache
    def drawn(step: int) -> str:
        alt = f"accuracy, answers, losses and rotation of the checkpoint after {step} steps of SFT"
        return parts.as_picture(figures.timeline(measurements, rotation, step, run.splits), alt)

    peak = run.peak_step(int(measurements["seed"].min()))
    slider = widgets.SelectionSlider(
        options=steps, value=peak, description="SFT step", continuous_update=False, layout={"width": "480px"}
    )
    result = parts.result_area()

    def moved(_: Any = None) -> None:
        result.value = drawn(slider.value)

    slider.observe(moved, "value")
    moved()
    parts.show_widget("timeline", [slider], result, figures.timeline(measurements, rotation, steps[-1], run.splits))
