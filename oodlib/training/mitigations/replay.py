"""Replay: a share of the demonstrations are dialogues of the base's pretraining. `sft.mitigation_share`: the share.

For the shipped bases, whose pretraining is known: the task deals it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.config import Config
from oodlib.tasks import Task
from oodlib.training.mitigations import Mitigation

if TYPE_CHECKING:
    from datasets import Dataset

PRETRAINED = {  # the shipped bases: on which task, and with which `belief`
    "tiny": ("general_points", 0.9),
    "reader": ("general_points", 0.0),
    "navigator": ("navigation", 0.0),
}


def data(demonstrations: Dataset, task: Task, config: Config, seed: int) -> Dataset:
    from datasets import Dataset

    known, belief = PRETRAINED.get(config.model.source, (None, 0.0))
    if task.name != known or config.task.prompt_style != "compact":
        raise ValueError(
            f"sft.mitigation replay needs what the base was pretrained on, known for {', '.join(PRETRAINED)} alone, "
            "each on its task in the compact style"
        )
    rng, rows = np.random.default_rng([seed, 6]), demonstrations.to_dict()
    for i in np.flatnonzero(rng.random(len(demonstrations)) < config.sft.mitigation_share):
        asked, answer = task.pretraining_dialogue(rng, 0, belief)
        rows["prompt"][i], rows["completion"][i] = asked, answer
    return Dataset.from_dict(rows)


MITIGATION = Mitigation("replay", data=data)
