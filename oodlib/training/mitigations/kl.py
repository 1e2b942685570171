"""KL to the base: the fine-tuned model may not move far from what the base would say, on the ID answers' tokens.

The loss gets weight * mean over the answers' tokens of KL(model || base). `sft.mitigation_weight`: the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation


def penalty(model: nn.Module, config: Config) -> Callable[..., Tensor]:
    base = copy.deepcopy(model).eval().requires_grad_(False)

    def divergence(inputs) -> Tensor:
        read = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        with torch.no_grad():
            wanted = base(**read).logits[:, :-1]
        scored = inputs["labels"][:, 1:] != -100
        return config.sft.mitigation_weight * kl(model(**read).logits[:, :-1][scored], wanted[scored])

    return divergence


def kl(mine: Tensor, theirs: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(mine) || softmax(theirs)) in nats; logits [n, words]."""
    p, q = mine.float().log_softmax(-1), theirs.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


MITIGATION = Mitigation("KL to the base", penalty=penalty)
