"""Arms: what may be done to an SFT checkpoint. Each is one module here with `make_trainer(setup) -> Trainer`.

All arms of a preset make the same number of updates with the same number of samples an update, the same
learning rate and the same schedule; only what they learn from differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, Trainer

from oodlib.presets import ARMS, Preset
from oodlib.tasks import Task, check_choice

TITLES = {
    "rl": "RL",
    "sft_continued": "control: SFT continued",
    "rejection_sampling": "control: rejection sampling",
}


class NoData(RuntimeError):
    """An arm has nothing to learn from at this start; the checkpoint then stays as it is."""


@dataclass(frozen=True)
class Setup:
    """What an arm starts from: the model to train in place, the task, and where checkpoints go."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    preset: Preset
    seed: int
    folder: Path

    @property
    def batch(self) -> int:
        """Samples an update: RL's batch of answers is split evenly over `rl_updates_per_batch` updates."""
        return self.preset.rl_prompts * self.preset.rl_samples // self.preset.rl_updates_per_batch

    @property
    def batches(self) -> int:
        """How many batches of answers RL draws."""
        return self.preset.rl_steps // self.preset.rl_updates_per_batch

    def problems(self) -> list[Any]:
        """The ID problems that RL answers, one a group; other draws than those of the SFT stage."""
        rng = np.random.default_rng([self.seed, 1])
        return self.task.sample(rng, "id", self.batches * self.preset.rl_prompts)


def make_trainer(arm: str, setup: Setup) -> Trainer:
    """The trainer of an arm. Raises ValueError for an unknown one."""
    check_choice("arm", arm, ARMS)
    return import_module(f"oodlib.arms.{arm}").make_trainer(setup)
