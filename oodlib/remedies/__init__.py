"""Remedies: ways to fine-tune that should forget less; each an option `sft_remedy` of the SFT stage, one module here.

A remedy that changes training has `penalty(model, preset) -> callable(inputs) -> loss to add`, or
`prepare(model, preset) -> model`. One that edits finished checkpoints has
`edit(step, sft, preset, seed) -> tensors`, where `sft(step)` is the folder of plain SFT's weights. What
`sft_remedy_weight` and `sft_remedy_share` mean stands in each module.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from trl import SFTTrainer

from oodlib.presets import REMEDIES
from oodlib.tasks import check_choice


def load_remedy(name: str) -> ModuleType | None:
    """The module of a remedy, None for `none`. Raises ValueError for an unknown one."""
    check_choice("remedy", name, REMEDIES)
    return None if name == "none" else import_module(f"oodlib.remedies.{name}")


class PenalisedTrainer(SFTTrainer):
    """SFT with another term added to the loss."""

    penalty = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        penalty = self.penalty(inputs)  # first, for TRL may take things out of the inputs
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (found[0] + penalty, found[1]) if return_outputs else found + penalty
