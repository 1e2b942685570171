"""Averaging the weights of the last 24 SFT steps, every 8th of them (Izmailov et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation
from oodlib.training.trainer import average, averaged_steps


def edit(step: int, sft: Callable[[int], Path], config: Config, seed: int) -> dict[str, Tensor]:
    return average(sft, step)


MITIGATION = Mitigation("averaging", edit=edit, averages=averaged_steps)
