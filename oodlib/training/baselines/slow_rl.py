"""RL itself at 0.4 times its learning rate: does it heal more the less it moves?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oodlib.training.baselines import Baseline

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup

SHARE = 0.4


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    slow = setup.config.changed({"rl.learning_rate": SHARE * setup.config.rl.learning_rate})
    return rl.make_trainer(rl.with_config(setup, slow))


BASELINE = Baseline("RL at 0.4 of its rate", "#004D40", "variant", make_trainer=make_trainer, counts=False)
