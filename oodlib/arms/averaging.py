"""Rival: no training at all, the mean of the last three SFT checkpoints up to the start.

If this heals as well as RL, what RL undid was the noise of SFT's learning rate (Izmailov et al. 2018).
"""

from __future__ import annotations

from torch import Tensor

from oodlib.arms import Setup
from oodlib.models import mix

LAST = 3


def last_checkpoints(preset, step: int) -> list[int]:
    """The last three SFT checkpoints up to a step, the base not among them."""
    return [t for t in preset.sft_checkpoints if 0 < t <= step][-LAST:] or [step]


def make_weights(setup: Setup) -> dict[str, Tensor]:
    steps = last_checkpoints(setup.preset, setup.start)
    return mix([(setup.sft(t), 1 / len(steps)) for t in steps])
