"""GRPO's negative half (cf. arXiv:2506.01347): wrong answers are pushed down, and no answer is pushed up.

Wrong answers keep their negative advantages; all others are set to 0. What RL does beyond it is the positive half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.config import Config
from oodlib.training.baselines import PPO_ALONE, Baseline, with_algorithm

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.weighed_trainer(rl.with_config(setup, as_grpo(setup.config)), wrong_alone)


def wrong_alone(advantages: np.ndarray, right: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.where(right, 0.0, np.minimum(advantages, 0.0))


def as_grpo(config: Config) -> Config:
    changed = with_algorithm(config, "grpo")
    if strange := {"scale_rewards", "multi_objective_aggregation"} & set(changed.rl.options):
        raise ValueError(
            f"rl.baselines: negatives halves GRPO's own advantages, and rl.options.{min(strange)} changes them"
        )
    return changed


BASELINE = Baseline(
    "RL, negatives alone",
    "#794DFF",
    "variant",
    make_trainer=make_trainer,
    counts=False,
    ignores=PPO_ALONE,
    check=as_grpo,
)
