"""What RL sampled, what it was paid, and what it learnt from: kept beside the checkpoints (claim C6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from transformers import TrainerCallback

from oodlib.io import read_table
from oodlib.models.loading import MARK
from oodlib.tasks import Verdict
from oodlib.training.setup import Setup

ROLLOUTS = "rollouts.parquet"  # in a checkpoint's folder: all samples up to it
Score = Callable[[list[list[Verdict]], np.random.Generator], list[list[float]]]  # verdicts -> rewards, one an attempt


def checker_rewards(verdicts: list[list[Verdict]], _: np.random.Generator) -> list[list[float]]:
    """The checker's own rewards."""
    return [[v.reward for v in attempts] for attempts in verdicts]


class Record:
    """What was sampled, paid and learnt from in RL, by all processes; `keeper` lays it down beside the checkpoints."""

    def __init__(self, setup: Setup, score: Score):
        self.setup, self.score, self.frames = setup, score, []
        self.keeper = _Keeper(self)

    def rewards(self, verdicts: list[list[Verdict]], step: int) -> list[list[float]]:
        """What the attempts of a batch of episodes are paid; the same again for the same step."""
        return self.score(verdicts, np.random.default_rng([self.setup.seed, 3, step]))

    def add(self, step, problems, groups, verdicts, answers, returns, advantages) -> None:
        """A row an episode: its last answer and outcome, how many attempts it took, return and (first) advantage."""
        frame = {
            "update": step,
            "problem": [self.setup.task.label(p) for p in problems],
            "group": groups,
            "answer": [attempts[-1] for attempts in answers],
            "outcome": [attempts[-1].outcome for attempts in verdicts],
            "tries": np.int8([len(attempts) for attempts in verdicts]),
            "reward": np.float32(returns),
            "advantage": np.float32(advantages),
        }
        self.frames.append(pd.DataFrame(frame))


class _Keeper(TrainerCallback):
    """Lays the samples seen so far beside each checkpoint, and takes them up again after an interruption."""

    def __init__(self, record: Record):
        self.record = record

    def on_train_begin(self, args, state, control, **_):
        earlier = self.record.setup.folder / f"checkpoint-{state.global_step}" / ROLLOUTS
        if earlier.exists():
            self.record.frames = [read_table(earlier)]

    def on_save(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        folder = self.record.setup.folder / f"checkpoint-{state.global_step}"
        assert not (folder / MARK).exists(), "samples must be laid down before the checkpoint counts as whole"
        pd.concat(self.record.frames, ignore_index=True).to_parquet(folder / ROLLOUTS, index=False)
