"""Rival: RL whose rewards say nothing, the checker's own dealt to the tries of a batch at random.

If this heals as well, then not the reward but the noise, or learning from one's own samples, did it.
"""

from __future__ import annotations

import numpy as np
from transformers import Trainer

from oodlib.arms import Setup, rl
from oodlib.tasks import Verdict


def make_trainer(setup: Setup) -> Trainer:
    return rl.make_trainer(setup, shuffled)


def shuffled(verdicts: list[list[Verdict]], rng: np.random.Generator) -> list[list[float]]:
    """The rewards of all tries of all episodes, in random order."""
    rewards = rng.permutation([v.reward for tries in verdicts for v in tries])
    ends = np.cumsum([len(tries) for tries in verdicts])[:-1]
    return [list(map(float, part)) for part in np.split(rewards, ends)]
