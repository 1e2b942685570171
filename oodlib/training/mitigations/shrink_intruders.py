"""Shrinking intruders (arXiv:2410.21228): new leading directions that match none of the base count less.

Of the leading directions of each trained matrix those whose left vector matches no left vector of the base better than
a cosine of 0.5 are intruders. The share 1 - `sft.mitigation_weight` of what each adds to the matrix is taken away; 0.75
leaves three quarters of it. `sft.mitigation_share`: how many directions are leading, as a share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from oodlib.config import Config
from oodlib.models.loading import load_weights
from oodlib.models.names import matrices
from oodlib.spectral.metrics import INTRUDER
from oodlib.spectral.svd import count_of
from oodlib.training.mitigations import Mitigation


def edit(step: int, sft: Callable[[int], Path], config: Config, seed: int) -> dict[str, Tensor]:
    before, after = load_weights(sft(0)), load_weights(sft(step))
    for name in matrices(after):
        after[name] = shrunk(before[name], after[name], config.sft.mitigation_share, config.sft.mitigation_weight)
    return after


def shrunk(before: Tensor, after: Tensor, share: float, kept: float) -> Tensor:
    """The trained matrix [m, n] with each intruder among its leading directions scaled by `kept`."""
    old = torch.linalg.svd(before.double(), full_matrices=False)[0]
    u, s, v = torch.linalg.svd(after.double(), full_matrices=False)
    k = count_of(share, len(s))
    intruders = (old.T @ u[:, :k]).abs().amax(0) < INTRUDER
    scale = torch.where(intruders, kept - 1.0, 0.0)
    return (after.double() + (u[:, :k] * (scale * s[:k])) @ v[:k]).to(after.dtype)


MITIGATION = Mitigation("shrunk intruders", edit=edit)
