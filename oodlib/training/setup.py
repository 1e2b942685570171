"""What RL and every baseline start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from oodlib.config import Config
from oodlib.inference.episodes import Episode, play
from oodlib.models.loading import working_dtype
from oodlib.tasks import Task

STEP = "oodlib-step"  # the first word of a line in which one of several processes says how far it is


class NoData(RuntimeError):
    """A baseline has nothing to learn from at this start; the checkpoint then stays as it is."""


@dataclass(frozen=True)
class Setup:
    """The model to train in place, the task, and where checkpoints go."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    config: Config
    seed: int
    folder: Path
    start: int = 0  # the SFT step of the model
    sft: Callable[[int], Path] | None = None  # the folder of the weights at an SFT step

    @property
    def samples(self) -> int:
        """Distinct samples that RL and every baseline learn from, each seen `rl.epochs` times."""
        return self.config.rl.steps // self.config.rl.epochs * self.config.rl.samples_per_update

    def problems(self) -> list[Any]:
        """The ID problems that RL answers, one a group; other draws than those of the SFT stage."""
        rng = np.random.default_rng([self.seed, 1])
        n = self.config.rl.steps // self.config.rl.cycle * self.config.rl.prompts
        return self.task.sample(rng, self.task.splits.trained.name, n)

    def play(self, problems: list[Any], model: Any = None) -> list[Episode]:
        """An episode for each problem, sampled as in RL, by the setup's model or another."""
        model, dtype = model or self.model, working_dtype(self.config.machine.precision)
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):  # as in training
            return play(
                model,
                self.tokenizer,
                self.task,
                problems,
                self.config.task.prompt_style,
                self.config.task.max_new_tokens,
                self.config.rl.attempts,
                temperature=self.config.rl.temperature,
                generator=self.config.machine.generator,
            )
