"""No training at all: the mean of the weights 24, 16, 8 and 0 steps before the start (Izmailov et al. 2018).

If this heals as well as RL, what RL undid was the noise of SFT's learning rate, unless the OOD peak lies less than 24
steps before the start: then the mean reaches back to it. SFT keeps these steps beside every checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.training.baselines import ALGORITHM, TRAINING, Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from oodlib.training.setup import Setup


def make_weights(setup: Setup) -> dict[str, Tensor]:
    from oodlib.training.trainer import average

    return average(setup.sft, setup.start)


BASELINE = Baseline(
    "last checkpoints averaged",
    "#CC79A7",
    "none",
    make_weights=make_weights,
    averages=True,
    ignores=ALGORITHM + TRAINING,
)
