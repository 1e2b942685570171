"""Control: SFT simply goes on, on fresh ID demonstrations, at RL's learning rate.

If this brings OOD accuracy back as well as RL does, then what healed was the lower learning rate or the
larger batch, not RL. The paper has no such arm.
"""

from __future__ import annotations

from transformers import Trainer

from oodlib.arms import Setup
from oodlib.training import arm_trainer, demonstrations


def make_trainer(setup: Setup) -> Trainer:
    # other demonstrations than those of the SFT stage, which were drawn with the seed itself
    return arm_trainer(setup, demonstrations(setup.task, setup.preset, setup.seed + 2**31, setup.samples))
