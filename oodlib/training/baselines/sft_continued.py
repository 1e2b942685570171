"""SFT simply goes on, on fresh ID demonstrations, at RL's learning rate.

If this brings OOD accuracy back as well as RL does, then what healed was the lower learning rate or the
larger batch, not RL. The paper has no such baseline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.training.baselines import ALGORITHM, Baseline

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training.trainer import arm_trainer, demonstrations

    # other demonstrations than those of the SFT stage, which were drawn with the seed itself
    return arm_trainer(setup, demonstrations(setup.task, setup.config, setup.seed + 2**31, setup.samples))


BASELINE = Baseline(
    "SFT continued",
    "#E69F00",
    "more",
    make_trainer=make_trainer,
    ignores=(*ALGORITHM, "attempts", "temperature"),
)
