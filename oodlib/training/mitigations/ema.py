"""An exponential moving average of SFT's weights, begun at the base (Polyak & Juditsky 1992; Tarvainen & Valpola 2017).

Every 8th step moves the average towards its weights by `sft.mitigation_share`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from oodlib.config import Config
from oodlib.training.mitigations import Mitigation
from oodlib.training.trainer import mix_steps

EVERY = 8


def steps(step: int) -> list[int]:
    """The steps whose weights the average at a checkpoint has seen: it, and every 8th before it."""
    return list(range(step, 0, -EVERY))


def edit(step: int, sft: Callable[[int], Path], config: Config, seed: int) -> dict[str, Tensor]:
    share, seen = config.sft.mitigation_share, steps(step)
    shares = {t: share * (1 - share) ** i for i, t in enumerate(seen)}
    return mix_steps(sft, {**shares, 0: (1 - share) ** len(seen)})


MITIGATION = Mitigation("EMA of the weights", edit=edit, averages=steps)
