"""1-0 REINFORCE, as in arXiv:2509.04259: a right answer is learnt with weight 1, a wrong one not at all.

The policy gradient of the chance of a right answer without a baseline: on the model's own answers as it is, but with no
negative advantages. It is RL's training in all else, its temperature included.
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
    return with_algorithm(config.changed({"rl.options": {}}), "grpo")


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.weighed_trainer(rl.with_config(setup, as_grpo(setup.config)), one_if_right)


def one_if_right(_: np.ndarray, right: np.ndarray, __: np.ndarray) -> np.ndarray:
    return right.astype(float)


BASELINE = Baseline(
    "RL, 1-0 REINFORCE",
    "#A6611A",
    "variant",
    make_trainer=make_trainer,
    counts=False,
    ignores=("algorithm", "options", *PPO_ALONE),
    check=as_grpo,
)
