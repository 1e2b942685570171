"""Mitigations: ways to fine-tune that should forget less. Each is one file here that assigns `MITIGATION`.

`sft.mitigation` names one. What `sft.mitigation_weight` and `sft.mitigation_share` mean stands in each file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodlib.config import Config

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Mitigation:
    """A way to fine-tune: by a term of the loss, another model to train, or an edit of finished checkpoints.

    Attributes:
        label: what figures and tables call it.
        penalty: (model, config) -> a function of a batch's inputs, whose value is added to the loss.
        prepare: (model, config) -> the model to train.
        edit: (step, sft, config, seed) -> a checkpoint's tensors; `sft(step)` is the folder of plain SFT's weights.
        averages: whether `edit` needs the steps shortly before each checkpoint.
    """

    label: str
    penalty: Callable[[nn.Module, Config], Callable[[Any], Tensor]] | None = None
    prepare: Callable[[nn.Module, Config], nn.Module] | None = None
    edit: Callable[[int, Callable[[int], Path], Config, int], dict[str, Tensor]] | None = None
    averages: bool = False
