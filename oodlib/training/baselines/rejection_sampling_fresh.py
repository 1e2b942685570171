"""Rejection-sampling fine-tuning with fresh samples: each batch of RL's problems is answered by the model as it is now.

Episodes, problems and updates are RL's, and only right answers are learnt: RL's positive half, without negatives and
advantages. TRL's GRPO plays and learns; what makes its loss that of SFT:

- GRPO's gradient is -ratio x A x grad log p(token), over the batch's N own tokens. The ratio is taken to the current
  model, so that it is 1 and no clip ever holds; temperature 1 makes log p that of SFT.
- A is N / R where the answer is right and 0 elsewhere, R the own tokens of right answers: the mean over N tokens
  becomes the mean over R, which is cross-entropy on the right answers. With answers of one length A is the number of
  answers over that of right ones. A batch's R is spread over its updates as its right answers are.
- As in `rejection_sampling`, of several attempts only the right one is learnt, after what was said before it.
- An update with no right answer changes nothing: Adam's momentum would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.config import Config
from oodlib.training.baselines import PPO_ALONE, Baseline, with_algorithm

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup


def as_grpo(config: Config) -> Config:
    return with_algorithm(config.changed({"rl.options": {}}), "grpo", kl=0.0)


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.imitating_trainer(rl.with_config(setup, as_grpo(setup.config)), right_alone)


def right_alone(_: np.ndarray, right: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """All tokens over those of right answers, for a right answer; 0 for any other."""
    return right * tokens.sum() / max((right * tokens).sum(), 1)


BASELINE = Baseline(
    "rejection sampling, fresh",
    "#332288",
    "equal",
    make_trainer=make_trainer,
    ignores=("algorithm", "clip", "kl", "options", *PPO_ALONE),
    check=as_grpo,
)
