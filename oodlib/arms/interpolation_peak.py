"""Rival with an oracle: half-way between the start and the OOD peak of SFT in weight space.

It knows where OOD accuracy peaked, which RL does not; so it is shown, and counts as no control.
"""

from __future__ import annotations

from torch import Tensor

from oodlib.arms import Setup
from oodlib.models import mix


def make_weights(setup: Setup) -> dict[str, Tensor]:
    return mix([(setup.sft(setup.start), 0.5), (setup.sft(setup.peak()), 0.5)])
