"""PPO, the paper's algorithm, whatever `rl.algorithm` is, with a value loss too weak to swamp the policy's gradient.

The value head reads the policy's own last layer: with a coefficient of 0.5 its loss moves the body more than the
policy's does, and little is learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.config import Config
from oodlib.training.baselines import Baseline, with_algorithm

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup

VALUE_COEFFICIENT = 0.02


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.make_trainer(rl.with_config(setup, as_ppo(setup.config)))


def as_ppo(config: Config) -> Config:
    return with_algorithm(config, "ppo", kl=0.0, value_coefficient=VALUE_COEFFICIENT)


BASELINE = Baseline(
    "RL, PPO",
    "#AA3377",
    "variant",
    make_trainer=make_trainer,
    counts=False,
    ignores=("kl", "value_coefficient"),
    check=as_ppo,
)
