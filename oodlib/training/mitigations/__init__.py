"""Mitigations: ways to fine-tune that should forget less. Each is one file here that assigns `MITIGATION`.

`sft.mitigation` names one. What `sft.mitigation_weight` and `sft.mitigation_share` mean stands in each file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodlib.config import Config
from oodlib.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn


@dataclass(frozen=True)
class Mitigation:
    """A way to fine-tune: by other demonstrations, another loss, another model to train, or an edit of checkpoints.

    Attributes:
        label: what figures and tables call it.
        data: (demonstrations, task, config, seed) -> as many demonstrations, columns prompt and completion.
        options: of TRL's SFTConfig.
        weigh: (model, config) -> a function of a batch's inputs, its tokens' log-probabilities and the update, whose
            values weigh the tokens' loss (see `trainer.MitigatedTrainer`).
        penalty: (model, config) -> a function of a batch's inputs, whose value is added to the loss.
        prepare: (model, config) -> the model to train.
        edit: (step, sft, config, seed) -> a checkpoint's tensors; `sft(step)` is the folder of plain SFT's weights.
        averages: of a checkpoint's step, all steps whose weights `edit` needs for it; None: its own.
    """

    label: str
    data: Callable[[Dataset, Task, Config, int], Dataset] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    weigh: Callable[[nn.Module, Config], Callable[[Any, Tensor, int], Tensor]] | None = None
    penalty: Callable[[nn.Module, Config], Callable[[Any], Tensor]] | None = None
    prepare: Callable[[nn.Module, Config], nn.Module] | None = None
    edit: Callable[[int, Callable[[int], Path], Config, int], dict[str, Tensor]] | None = None
    averages: Callable[[int], list[int]] | None = None
