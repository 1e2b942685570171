"""Rival: no training at all, half-way between the start and the base model in weight space (Wortsman et al. 2022)."""

from __future__ import annotations

from torch import Tensor

from oodlib.arms import Setup
from oodlib.models import mix


def make_weights(setup: Setup) -> dict[str, Tensor]:
    return mix([(setup.sft(setup.start), 0.5), (setup.sft(0), 0.5)])
