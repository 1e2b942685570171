"""KL to the base on other rules' prompts: the fine-tuned model may not move far from the base where it is not trained.

As `kl`, but on right answers to as many problems under other rules as a batch has, values 5 to 10 (OTHER_RULES; none is
that of a split), and without their first token: there the base chooses the format, which SFT is to change under every
rule. `sft.mitigation_weight`: the weight. The problems are the same for every seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation
from oodlib.training.mitigations.kl import kl

PROBLEMS = 512


def penalty(model: nn.Module, config: Config) -> Callable[[Any], Tensor]:
    base, rows, turn = copy.deepcopy(model).eval().requires_grad_(False), answers(config), count()

    def divergence(inputs: Any) -> Tensor:
        size = len(inputs["input_ids"])
        start = next(turn) * size
        chosen = [rows[i % len(rows)] for i in range(start, start + size)]
        ids = pad_sequence([torch.tensor(prompt + answer) for prompt, answer in chosen], batch_first=True)
        ids, place = ids.to(inputs["input_ids"].device), torch.arange(ids.shape[1])
        first = torch.tensor([[len(prompt) + 1] for prompt, _ in chosen])
        last = torch.tensor([[len(prompt) + len(answer)] for prompt, answer in chosen])
        read = {"input_ids": ids, "attention_mask": (place < last).long().to(ids.device)}
        scored = ((place >= first) & (place < last))[:, 1:].to(ids.device)
        with torch.no_grad():
            wanted = base(**read).logits[:, :-1]
        return config.sft.mitigation_weight * kl(model(**read).logits[:, :-1][scored], wanted[scored])

    return divergence


def answers(config: Config) -> list[tuple[list[int], list[int]]]:
    """Token ids of prompts under other rules, and of a right answer to each with its end."""
    from oodlib.inference.episodes import as_text
    from oodlib.models.loading import load_tokenizer
    from oodlib.models.sources import model_folder
    from oodlib.tasks import get_task

    task, style = get_task(config.task.name, config.task.options), config.task.prompt_style
    if not hasattr(task, "other_rules"):
        raise ValueError(f"sft.mitigation kl_other_rules needs a task that has other rules; {task.name} does not")
    tokenizer, rng = load_tokenizer(model_folder(config.model.source)), np.random.default_rng(9)
    problems = task.other_rules(rng, PROBLEMS)
    asked = [as_text(task.prompt(problem, style), tokenizer) for problem in problems]
    given = [as_text(task.answer(problem, style, rng), tokenizer, answer=True) for problem in problems]
    asked, given = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (asked, given))
    return [(prompt, [*answer, tokenizer.eos_token_id]) for prompt, answer in zip(asked, given, strict=True)]


MITIGATION = Mitigation("KL to the base, other rules", penalty=penalty)
