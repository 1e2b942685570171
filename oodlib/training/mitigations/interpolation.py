"""Interpolation with the base in weight space (WiSE-FT, Wortsman et al. 2022).

`sft.mitigation_share`: the base's share.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from oodlib.config import Config
from oodlib.models.loading import mix
from oodlib.training.mitigations import Mitigation


def edit(step: int, sft: Callable[[int], Path], config: Config, seed: int) -> dict[str, Tensor]:
    share = config.sft.mitigation_share
    return mix([(sft(step), 1 - share), (sft(0), share)])


MITIGATION = Mitigation("interpolation", edit=edit)
