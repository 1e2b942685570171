"""L2 to the base (L2-SP, arXiv:1802.01483): the loss gets weight * sum over all weights of (w - w0)^2.

`sft.mitigation_weight`: the weight.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation


def penalty(model: nn.Module, config: Config) -> Callable[..., Tensor]:
    weights = [(weight, weight.detach().clone()) for weight in model.parameters() if weight.requires_grad]
    return lambda _: config.sft.mitigation_weight * sum((w - start).square().sum() for w, start in weights)


MITIGATION = Mitigation("L2 to the base", penalty=penalty)
