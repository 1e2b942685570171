"""PSFT, proximal fine-tuning (arXiv:2508.17784): PPO's clipped objective on demonstrations, range 0.8 to 1.28.

A token's ratio is its probability over that under an older model, which is renewed every 8 updates. The advantage is 1,
so the clip holds above alone: a token that has become 1.28 times as likely is left alone until the next renewal, and
any other's gradient is weighed by its ratio. A training that was cut off goes on with the older model renewed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation

HIGH = 1.28
RENEWED = 8


class Clip:
    """The ratio of each token where it is at most HIGH, else 0; renews the older model every RENEWED updates."""

    def __init__(self, model: nn.Module):
        self.model, self.period = model, -1
        self.older = copy.deepcopy(model).eval().requires_grad_(False)

    def __call__(self, inputs: Any, log_p: Tensor, step: int) -> Tensor:
        if step // RENEWED != self.period:
            self.period = step // RENEWED
            self.older.load_state_dict(self.model.state_dict())
        ratio = torch.exp(log_p - answer_log_probs(self.older, inputs))
        return ratio.where(ratio <= HIGH, 0)


def weigh(model: nn.Module, config: Config) -> Callable[[Any, Tensor, int], Tensor]:
    return Clip(model)


@torch.no_grad()
def answer_log_probs(model: nn.Module, inputs: Any) -> Tensor:
    """The log-probability of each next token of a batch, 0 where it is none of an answer's, [rows, width - 1]."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    labels = inputs["labels"][:, 1:]
    log_p = logits.float().log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return log_p.where(labels != -100, 0)


MITIGATION = Mitigation("PSFT", weigh=weigh)
