"""Prompt diversity (arXiv:2510.00237): a share of the demonstrations is given under other rules than that of SFT.

Their values are numbers that SFT writes anyway, 5 to 10, and none is the rule of a split (of the probes some are). The
paper draws evenly from eight mappings; `sft.mitigation_share`, the share under other rules, is then 7/8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.config import Config
from oodlib.tasks import Task
from oodlib.training.mitigations import Mitigation

if TYPE_CHECKING:
    from datasets import Dataset


def data(demonstrations: Dataset, task: Task, config: Config, seed: int) -> Dataset:
    from datasets import Dataset

    if not hasattr(task, "other_rules"):
        raise ValueError(f"sft.mitigation prompt_diversity needs a task that has other rules; {task.name} does not")
    rng, rows, style = np.random.default_rng([seed, 8]), demonstrations.to_dict(), config.task.prompt_style
    places = np.flatnonzero(rng.random(len(demonstrations)) < config.sft.mitigation_share)
    for i, problem in zip(places, task.other_rules(rng, len(places)), strict=True):
        rows["prompt"][i], rows["completion"][i] = task.prompt(problem, style), task.answer(problem, style, rng)
    return Dataset.from_dict(rows)


MITIGATION = Mitigation("prompt diversity", data=data)
