"""RPSFT as its released code does it: the leading singular block of EVERY matrix held, embedding and head included.

See `rpsft`, which holds the projections alone; the settings mean the same.
"""

from __future__ import annotations

from torch import nn

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation
from oodlib.training.mitigations.rpsft import LeadingBlocks


def penalty(model: nn.Module, config: Config) -> LeadingBlocks:
    return LeadingBlocks(model, config.sft.mitigation_share, config.sft.mitigation_weight, embeddings=True)


MITIGATION = Mitigation("RPSFT, every matrix", penalty=penalty)
