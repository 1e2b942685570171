"""Averaging the weights of the last three SFT checkpoints (Izmailov et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from oodlib.arms.averaging import last_checkpoints
from oodlib.models import mix


def edit(step: int, sft: Callable[[int], Path], preset, seed: int) -> dict[str, Tensor]:
    steps = last_checkpoints(preset, step)
    return mix([(sft(t), 1 / len(steps)) for t in steps])
