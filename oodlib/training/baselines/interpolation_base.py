"""No training at all: half-way between the start and the base model in weight space (Wortsman et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.training.baselines import ALGORITHM, TRAINING, Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from oodlib.training.setup import Setup


def make_weights(setup: Setup) -> dict[str, Tensor]:
    from oodlib.models.loading import mix

    return mix([(setup.sft(setup.start), 0.5), (setup.sft(0), 0.5)])


BASELINE = Baseline("half-way to the base", "#A0522D", "none", make_weights=make_weights, ignores=ALGORITHM + TRAINING)
