"""RL that is paid for the answer's format alone, as much for any formula as for a right one.

If this heals as well, then RL mended the form of the answers, not the reading of the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.config import Config
from oodlib.tasks import Verdict
from oodlib.training.baselines import Baseline

if TYPE_CHECKING:
    from transformers import Trainer

    from oodlib.training.setup import Setup

GOOD, BAD = 5.0, -3.0


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training import rl

    return rl.make_trainer(setup, by_format)


def by_format(verdicts: list[list[Verdict]], _: np.random.Generator) -> list[list[float]]:
    """5 for an attempt with a grammatical formula in it, -3 for any other."""
    return [[BAD if v.outcome in ("malformed", "illegal") else GOOD for v in attempts] for attempts in verdicts]


def check(config: Config) -> None:
    if config.rl.attempts > 1:
        raise ValueError(
            "rl.baselines: format_reward plays one attempt an episode; with several it would pay for failing"
        )


BASELINE = Baseline("RL, format reward", "#661100", "variant", make_trainer=make_trainer, check=check)
