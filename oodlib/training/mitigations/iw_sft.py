"""iw-SFT, importance-weighted fine-tuning (arXiv:2507.12856): an answer counts by how far the model is ahead on it.

Each answer's loss times min(16, exp(mean over its tokens of log p - log p of the base)), through which no gradient
flows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation
from oodlib.training.mitigations.psft import answer_log_probs

CAP = 16.0


def weigh(model: nn.Module, config: Config) -> Callable[[Any, Tensor, int], Tensor]:
    base = copy.deepcopy(model).eval().requires_grad_(False)

    def weights(inputs: Any, log_p: Tensor, step: int) -> Tensor:
        scored = inputs["labels"][:, 1:] != -100
        ahead = (log_p - answer_log_probs(base, inputs)).where(scored, 0)
        mean = ahead.sum(1, keepdim=True) / scored.sum(1, keepdim=True).clamp(min=1)
        return torch.exp(mean).clamp(max=CAP).expand_as(log_p)

    return weights


MITIGATION = Mitigation("iw-SFT", weigh=weigh)
