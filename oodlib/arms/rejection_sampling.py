"""Control: rejection-sampling fine-tuning (Yuan et al. 2023), SFT on the model's own correct answers.

As many answers as RL draws are sampled once from the starting checkpoint, to the same prompts, and the
correct ones are learnt by SFT. It has RL's data source and selects by the same checker, but has no
negative examples, and its samples are not drawn anew as the model moves.
"""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from oodlib.arms import NoData, Setup
from oodlib.evaluate import as_text, generate
from oodlib.training import sft_trainer


def make_trainer(setup: Setup) -> Trainer:
    preset = setup.preset
    return sft_trainer(
        setup.model,
        setup.tokenizer,
        correct_answers(setup),
        setup.folder,
        setup.seed,
        preset.rl_steps,
        preset.rl_learning_rate,
        per_device_train_batch_size=setup.batch,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=preset.rl_warmup_steps,
    )


def correct_answers(setup: Setup) -> Dataset:
    """The starting checkpoint's correct answers among as many as RL draws: columns prompt, completion.

    Each right answer comes about equally often, so that there are exactly as many rows as all updates take.
    Raises NoData if no answer is right.
    """
    preset, task = setup.preset, setup.task
    problems = [p for p in setup.problems() for _ in range(preset.rl_samples)]
    prompts = [task.prompt(p, preset.prompt_style) for p in problems]
    texts = [as_text(p, setup.tokenizer) for p in prompts]
    torch.manual_seed(setup.seed)
    answers = generate(
        setup.model,
        setup.tokenizer,
        texts,
        preset.max_new_tokens,
        preset.eval_batch_size,
        preset.rl_temperature,
    )
    right = [i for i, (p, a) in enumerate(zip(problems, answers, strict=True)) if task.verify(p, a).reward > 0]
    if not right:
        raise NoData(f"none of {len(answers)} sampled answers is correct")
    rng, rows = np.random.default_rng([setup.seed, 2]), preset.rl_steps * setup.batch
    right = np.concatenate([rng.permutation(right) for _ in range(-(-rows // len(right)))])[:rows]
    chat = preset.prompt_style == "chat"
    completions = [[{"role": "assistant", "content": answers[i]}] if chat else answers[i] for i in right]
    return Dataset.from_dict({"prompt": [prompts[i] for i in right], "completion": completions})
