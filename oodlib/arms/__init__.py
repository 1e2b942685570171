"""Arms: what may be done to an SFT checkpoint. Each is one module here.

An arm that trains has `make_trainer(setup) -> Trainer`. All of a preset make the same number of updates with the
same number of samples an update, the same learning rate and the same schedule; only what they learn from differs.
An arm that only edits weights has `make_weights(setup) -> dict of tensors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from oodlib.episodes import Episode, play
from oodlib.presets import ARMS, Preset
from oodlib.tasks import Task, check_choice


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
    start: int = 0  # the SFT step of the model
    sft: Callable[[int], Path] | None = None  # the folder of the weights at an SFT step
    peak: Callable[[], int] | None = None  # the SFT step with the highest OOD accuracy

    @property
    def batch(self) -> int:
        """Samples an update: RL's batch of answers is split evenly over `rl_updates_per_batch` updates."""
        return samples_an_update(self.preset)

    @property
    def cycle(self) -> int:
        """Updates that are made with one batch of answers."""
        return self.preset.rl_updates_per_batch * self.preset.rl_epochs

    @property
    def samples(self) -> int:
        """Distinct samples that an arm learns from, each seen `rl_epochs` times."""
        return self.preset.rl_steps // self.preset.rl_epochs * self.batch

    def problems(self) -> list[Any]:
        """The ID problems that RL answers, one a group; other draws than those of the SFT stage."""
        rng = np.random.default_rng([self.seed, 1])
        return self.task.sample(rng, "id", self.preset.rl_steps // self.cycle * self.preset.rl_prompts)

    def play(self, problems: list[Any], model: Any = None) -> list[Episode]:
        """An episode for each problem, sampled as in RL, by the setup's model or another."""
        return play(
            model or self.model,
            self.tokenizer,
            self.task,
            problems,
            self.preset.prompt_style,
            self.preset.max_new_tokens,
            self.preset.turns_in_rl,
            temperature=self.preset.rl_temperature,
            engine=self.preset.machine.engine,
        )


def samples_an_update(preset: Preset) -> int:
    return preset.rl_prompts * preset.rl_samples // preset.rl_updates_per_batch


def load_arm(name: str) -> ModuleType:
    """The module of an arm. Raises ValueError for an unknown one."""
    check_choice("arm", name, ARMS)
    return import_module(f"oodlib.arms.{name}")
