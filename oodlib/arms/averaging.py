"""Rival: no training at all, the mean of the weights 24, 16, 8 and 0 steps before the start (Izmailov et al. 2018).

If this heals as well as RL, what RL undid was the noise of SFT's learning rate. The steps are close together, so that
the mean does not reach back to the OOD peak; SFT keeps them beside every checkpoint.
"""

from __future__ import annotations

from torch import Tensor

from oodlib.arms import Setup
from oodlib.remedies import averaging


def make_weights(setup: Setup) -> dict[str, Tensor]:
    return averaging.edit(setup.start, setup.sft, setup.preset, setup.seed)
