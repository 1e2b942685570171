"""Rival: RL that is paid for the answer's format alone, as much for any formula as for a right one.

If this heals as well, then RL mended the form of the answers, not the reading of the rule.
"""

from __future__ import annotations

import numpy as np
from transformers import Trainer

from oodlib.arms import Setup, rl
from oodlib.tasks import Verdict

GOOD, BAD = 5.0, -3.0


def make_trainer(setup: Setup) -> Trainer:
    return rl.make_trainer(setup, by_format)


def by_format(verdicts: list[list[Verdict]], _: np.random.Generator) -> list[list[float]]:
    """5 for a try with a grammatical formula in it, -3 for any other."""
    return [[BAD if v.outcome in ("malformed", "illegal") else GOOD for v in tries] for tries in verdicts]
