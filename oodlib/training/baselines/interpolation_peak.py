"""An oracle: half-way between the start and the OOD peak of SFT in weight space.

It knows where OOD accuracy peaked, which RL does not; so it is shown, and RL need not beat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.training.baselines import ALGORITHM, TRAINING, Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from oodlib.training.setup import Setup


def make_weights(setup: Setup) -> dict[str, Tensor]:
    from oodlib.models.loading import mix

    return mix([(setup.sft(setup.start), 0.5), (setup.sft(setup.peak()), 0.5)])


BASELINE = Baseline(
    "oracle: half-way to the peak",
    "#8C6BB1",
    make_weights=make_weights,
    counts=False,
    ignores=ALGORITHM + TRAINING,
    reads_evaluation=True,
)
