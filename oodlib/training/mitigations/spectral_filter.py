"""A spectral filter: of each matrix's change, only the leading singular directions are kept, after training.

`sft.mitigation_share`: the share of the directions that are kept. Embedding, head and norms keep their whole change.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from oodlib.config import Config
from oodlib.models.loading import load_weights
from oodlib.models.names import matrices
from oodlib.spectral.svd import count_of
from oodlib.training.mitigations import Mitigation


def edit(step: int, sft: Callable[[int], Path], config: Config, seed: int) -> dict[str, Tensor]:
    before, after = load_weights(sft(0)), load_weights(sft(step))
    for name in matrices(after):
        u, s, v = torch.linalg.svd((after[name] - before[name]).double(), full_matrices=False)
        k = count_of(config.sft.mitigation_share, len(s))
        after[name] = (before[name] + (u[:, :k] * s[:k]) @ v[:k]).to(after[name].dtype)
    return after


MITIGATION = Mitigation("spectral filter", edit=edit)
