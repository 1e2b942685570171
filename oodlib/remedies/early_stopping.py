"""Early stopping by an OOD probe: of the checkpoints so far, keep the one that answers most of 64 OOD problems right.

The probe's problems are drawn with the run's seed, cards shuffled; they are problems of the OOD split, dealt anew, so
this is what one could do who has some OOD problems, and the whole split still measures it. One try each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from oodlib.episodes import play
from oodlib.models import load_model, load_weights
from oodlib.tasks import get_task

PROBE = 64


def edit(step: int, sft: Callable[[int], Path], preset, seed: int) -> dict[str, Tensor]:
    task = get_task(preset.task, preset.task_options)
    problems = task.sample(np.random.default_rng([seed, 5]), "ood", PROBE)

    def right(t: int) -> int:
        episodes = play(*load_model(sft(t)), task, problems, preset.prompt_style, preset.max_new_tokens)
        return sum(e.solved for e in episodes)

    steps = [t for t in preset.sft_checkpoints if t <= step]
    return load_weights(sft(max(steps, key=lambda t: (right(t), t))))
