"""RPSFT, rotation-preserving SFT (arXiv:2605.10973): hold every matrix's leading singular block in place.

With W0 = U S V^T the pretrained matrix and k its leading directions, the loss gets
weight * sum over matrices of ||U_k^T (W - W0) V_k||_F^2: what mixes or scales the leading directions is penalised,
the rest is free. `sft.mitigation_weight`: the weight (1 in the paper). `sft.mitigation_share`: k as a share of the
directions (k = 768 there, about a fifth of a 7B model's). The released code holds more: `rpsft_released`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from oodlib.config import Config
from oodlib.models.names import matrices
from oodlib.spectral.svd import count_of, spectrum
from oodlib.training.mitigations import Mitigation


def penalty(model: nn.Module, config: Config) -> Callable[..., Tensor]:
    return LeadingBlocks(model, config.sft.mitigation_share, config.sft.mitigation_weight)


class LeadingBlocks:
    """weight * sum of ||U_k^T (W - W0) V_k||_F^2 over the projections, W0 as the model is now.

    embeddings: also over the embedding and the head.
    """

    def __init__(self, model: nn.Module, share: float, weight: float, embeddings: bool = False):
        named = dict(model.named_parameters())
        self.weight, self.blocks = weight, []
        for name in matrices(named, embeddings):
            matrix = named[name]
            s = spectrum(matrix.detach(), name)
            k = count_of(share, len(s.values))
            left, right = (x[:, :k].to(matrix) for x in (s.left, s.right))
            self.blocks.append((matrix, left, right, (left.T @ matrix.detach() @ right)))

    def __call__(self, *_) -> Tensor:
        return self.weight * sum((left.T @ w @ right - start).square().sum() for w, left, right, start in self.blocks)


MITIGATION = Mitigation("RPSFT", penalty=penalty)
