"""Interpolation with the base in weight space (WiSE-FT, Wortsman et al. 2022). `sft_remedy_share`: the base's share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from oodlib.models import mix


def edit(step: int, sft: Callable[[int], Path], preset, seed: int) -> dict[str, Tensor]:
    share = preset.sft_remedy_share
    return mix([(sft(step), 1 - share), (sft(0), share)])
