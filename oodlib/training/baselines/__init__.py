"""Baselines: what RL is compared with. Each is one file here that assigns `BASELINE`; there is no list of them.

A baseline that trains has `make_trainer(setup) -> Trainer`. All make RL's number of updates with RL's number of samples
an update, learning rate and schedule; only what they learn from differs. One that only edits weights has
`make_weights(setup) -> dict of tensors`. Both import what they need when they are called, so that a figure can ask for
a label without the training libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodlib.config import Config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from oodlib.training.setup import Setup

# Settings of `rl` that a baseline may ignore, so that runs which differ in them alone share its result.
ALGORITHM = ("algorithm", "clip", "kl", "discount", "gae_lambda", "value_coefficient", "entropy_coefficient", "options")
TRAINING = (
    "prompts", "samples", "updates_per_batch", "epochs", "learning_rate", "schedule", "warmup_steps", "max_grad_norm",
    "attempts", "temperature",
)  # fmt: skip


@dataclass(frozen=True)
class Baseline:
    """Something other than RL that goes on from an SFT checkpoint.

    Attributes:
        label: what figures and tables call it.
        colour: its colour in every figure.
        counts: whether RL has to beat it; an oracle, which knows where the OOD peak was, does not count.
        trains: whether it learns from right answers (then it is the nearest comparison), rather than edits weights.
        averages: whether it needs the steps shortly before its start.
        ignores: settings of `rl` that do not change its result.
        reads_evaluation: whether its weights depend on measured accuracies.
        check: raises ValueError for a configuration that it does not fit.
    """

    label: str
    colour: str
    make_trainer: Callable[[Setup], Trainer] | None = None
    make_weights: Callable[[Setup], dict[str, Tensor]] | None = None
    counts: bool = True
    trains: bool = False
    averages: bool = False
    ignores: tuple[str, ...] = ()
    reads_evaluation: bool = False
    check: Callable[[Config], None] = lambda config: None
