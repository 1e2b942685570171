"""Early stopping by an OOD probe: of the checkpoints so far, keep the one that answers most of 64 OOD problems right.

The probe's problems are drawn with the run's seed, cards shuffled; they are problems of the OOD split, dealt anew, so
this is what one could do who has some OOD problems, and the whole split still measures it. One try each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from oodlib.config import Config
from oodlib.inference.episodes import play
from oodlib.models.loading import load_model, load_weights
from oodlib.tasks import get_task
from oodlib.training.mitigations import Mitigation

PROBE = 64


def edit(step: int, sft: Callable[[int], Path], config: Config, seed: int) -> dict[str, Tensor]:
    task = get_task(config.task.name, config.task.options)
    problems = task.sample(np.random.default_rng([seed, 5]), task.splits.headline.name, PROBE)

    def right(t: int) -> int:
        episodes = play(
            *load_model(sft(t), precision=config.machine.precision),
            task,
            problems,
            config.task.prompt_style,
            config.task.max_new_tokens,
        )
        return sum(e.solved for e in episodes)

    steps = [t for t in config.sft.checkpoints if t <= step]
    return load_weights(sft(max(steps, key=lambda t: (right(t), t))))


MITIGATION = Mitigation("early stopping", edit=edit)
