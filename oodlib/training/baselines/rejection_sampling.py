"""Rejection-sampling fine-tuning (Yuan et al. 2023): SFT on the model's own correct answers.

As many episodes as RL plays are sampled once from the starting checkpoint, on the same problems, and the
right answers, after what was said before them, are learnt by SFT. It has RL's data source and selects by the
same checker, but has no negative examples, and its samples are not drawn anew as the model moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.training.baselines import ALGORITHM, Baseline

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from oodlib.training.setup import Setup


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training.trainer import arm_trainer

    return arm_trainer(setup, correct_answers(setup))


def correct_answers(setup: Setup) -> Dataset:
    """The starting checkpoint's correct answers in as many episodes as RL plays: columns input_ids, completion_mask.

    Each right answer comes about equally often, so that there are exactly as many rows as all updates take.
    Raises NoData if no answer is right.
    """
    import torch
    from datasets import Dataset

    from oodlib.training.setup import NoData

    problems = [p for p in setup.problems() for _ in range(setup.config.rl.samples)]
    torch.manual_seed(setup.seed)
    episodes = setup.play(problems)
    right = [e for e in episodes if e.solved]
    if not right:
        raise NoData(f"none of {len(episodes)} sampled answers is correct")
    rng, rows = np.random.default_rng([setup.seed, 2]), setup.samples
    order = np.concatenate([rng.permutation(len(right)) for _ in range(-(-rows // len(right)))])[:rows]
    before = [len(e.prompt) + e.starts[-1] for e in right]
    ids = [e.prompt + e.tokens for e in right]
    masks = [[0] * n + [1] * (len(t) - n) for n, t in zip(before, ids, strict=True)]
    return Dataset.from_dict({"input_ids": [ids[i] for i in order], "completion_mask": [masks[i] for i in order]})


BASELINE = Baseline("rejection sampling", "#56B4E9", "equal", make_trainer=make_trainer, ignores=ALGORITHM)
