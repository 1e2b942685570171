"""GRPO with an entropy bonus: the loss less 0.1 times the mean entropy of the answers' tokens (TRL's `entropy_coef`).

If this heals more, then what RL loses by its narrowing samples is part of what it does not heal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.config import Config
from oodlib.training.baselines import PPO_ALONE, Baseline, with_algorithm

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup

COEFFICIENT = 0.1


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.make_trainer(rl.with_config(setup, with_bonus(setup.config)))


def with_bonus(config: Config) -> Config:
    return with_algorithm(config, "grpo", {"entropy_coef": COEFFICIENT})


BASELINE = Baseline(
    "RL, entropy bonus",
    "#B4B464",
    "variant",
    make_trainer=make_trainer,
    counts=False,
    ignores=PPO_ALONE,
    check=with_bonus,
)
