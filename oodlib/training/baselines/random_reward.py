"""RL whose rewards say nothing: the checker's own, dealt to the attempts of a batch at random.

If this heals as well, then not the reward but the noise, or learning from one's own samples, did it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.tasks import Verdict
from oodlib.training.baselines import Baseline

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.make_trainer(setup, shuffled)


def shuffled(verdicts: list[list[Verdict]], rng: np.random.Generator) -> list[list[float]]:
    """The rewards of all attempts of all episodes, in random order."""
    rewards = rng.permutation([v.reward for attempts in verdicts for v in attempts])
    ends = np.cumsum([len(attempts) for attempts in verdicts])[:-1]
    return [list(map(float, part)) for part in np.split(rewards, ends)]


BASELINE = Baseline("RL, random reward", "#C4C4C4", "variant", make_trainer=make_trainer)
