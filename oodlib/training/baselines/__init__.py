"""Baselines: what RL is compared with. Each is one file here that assigns `BASELINE`; there is no list of them.

A baseline that trains has `make_trainer(setup) -> Trainer`. All make RL's number of updates with RL's number of samples
an update, learning rate and schedule, but for what they say; only what they learn from differs. One that only edits
weights has `make_weights(setup) -> dict of tensors`. Both import what they need when they are called, so that a figure
can ask for a label without the training libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oodlib.config import Config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer

    from oodlib.training.setup import Setup

# Settings of `rl` that a baseline may ignore, so that runs which differ in them alone share its result.
PPO_ALONE = ("gae_lambda", "value_coefficient", "entropy_coefficient")
ALGORITHM = ("algorithm", "clip", "kl", "discount", "options", *PPO_ALONE)
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
        information: what it learns from: RL's own problems and the checker's word on its answers to them ("equal"),
            demonstrations ("more"), nothing ("none"); "variant": it is RL, done otherwise.
        counts: whether RL has to beat it.
        averages: whether it needs the steps shortly before its start.
        ignores: settings of `rl` that do not change its result.
        check: raises ValueError for a configuration that it does not fit.
    """

    label: str
    colour: str
    information: Literal["equal", "more", "none", "variant"] = "variant"
    make_trainer: Callable[[Setup], Trainer] | None = None
    make_weights: Callable[[Setup], dict[str, Tensor]] | None = None
    counts: bool = True
    averages: bool = False
    ignores: tuple[str, ...] = ()
    check: Callable[[Config], object] = lambda config: None

    @property
    def trains(self) -> bool:
        """Whether it learns from right answers: then it is a nearer comparison than a variant or an edit."""
        return self.information in ("equal", "more")


def with_algorithm(config: Config, algorithm: str, options: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A configuration with another algorithm of RL, and other settings of `rl` with it; checked as every one is.

    `rl.options` are kept where they are of that algorithm already; `options` are added to them.
    """
    kept = config.rl.options if config.rl.algorithm == algorithm else {}
    changes |= {"algorithm": algorithm, "options": {**kept, **(options or {})}}
    return config.changed({"rl": changes})
