"""Tasks: distributions of problems, each with an in-distribution and an out-of-distribution split.

A task is one module with a `TASK` object that keeps to the protocol below. Nothing else in oodlib
knows which task runs. To add one, write the module and name it in `_TASKS`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

SPLITS = ("id", "ood")
OUTCOMES = ("correct", "wrong_value", "wrong_numbers", "illegal", "malformed")
STYLES = ("compact", "chat")

Outcome = Literal["correct", "wrong_value", "wrong_numbers", "illegal", "malformed"]


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one answer.

    Attributes:
        outcome: one of `OUTCOMES`; where an answer has several faults, the rightmost of that list.
        reward: the paper's reward, 5 for a correct answer, the sum of the faults (negative) otherwise.
        message: a sentence fit to be shown to the player, who may then try again.
    """

    outcome: Outcome
    reward: float
    message: str


class Task(Protocol):
    """What the rest of oodlib asks of a task. `P` below is the task's own, immutable problem type."""

    name: str

    def split(self, name: str) -> list[Any]:
        """Every distinct solvable problem of a split, in a fixed order."""

    def sample(self, rng: np.random.Generator, split: str, n: int) -> list[Any]:
        """`n` problems dealt at random from a split, with repetition."""

    def prompt(self, problem: Any, style: str) -> str | list[dict[str, str]]:
        """The question: text in the style `compact`, chat messages in the style `chat`."""

    def answer(self, problem: Any, style: str, rng: np.random.Generator) -> str | list[dict[str, str]]:
        """A right answer in the wanted format, drawn at random from all of them."""

    def verify(self, problem: Any, text: str) -> Verdict:
        """Judge a model's answer. Never runs it."""

    def label(self, problem: Any) -> str:
        """A short name of the problem, unique in its split."""


_TASKS = {"general_points": "oodlib.tasks.general_points"}


def task_names() -> list[str]:
    """The tasks that `get_task` knows."""
    return sorted(_TASKS)


def get_task(name: str) -> Task:
    """The task called `name`. Raises ValueError for an unknown one."""
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are: {', '.join(task_names())}")
    return importlib.import_module(_TASKS[name]).TASK


def check_choice(kind: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value`, or a ValueError that names it and what is allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {kind} {value!r}; allowed: {', '.join(allowed)}")
    return value
