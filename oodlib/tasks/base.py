"""Tasks: distributions of problems, each with an in-distribution and an out-of-distribution split.

A task is one file (or folder) here that assigns `TASK`: an object that keeps to the protocol below, or a function of
the options (a mapping) that returns one whose `parameters()` say what decides results. Nothing else in oodlib knows
which task runs. A task from elsewhere is named module:object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np

from oodlib.registry import TASKS

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

    def feedback(self, problem: Any, verdict: Verdict, style: str) -> str | list[dict[str, str]]:
        """What is said after a wrong attempt, before the next one."""

    def label(self, problem: Any) -> str:
        """A short name of the problem, unique in its split."""


def task_names() -> list[str]:
    """The tasks in oodlib/tasks/."""
    return TASKS.names()


def get_task(name: str, options: Mapping[str, str] | None = None) -> Task:
    """The task called `name` with these options; files are read once a process.

    ValueError for an unknown task, or options that do not fit it.
    """
    TASKS.check(name, "task.name")
    return _get_task(name, tuple(sorted((options or {}).items())))


@cache
def _get_task(name: str, options: tuple[tuple[str, str], ...]) -> Task:
    found = TASKS.get(name)
    if callable(found):
        found = found(dict(options))
    elif options:
        raise ValueError(f"task.options = {dict(options)}: the task {name!r} takes none")
    methods = [method for method in vars(Task) if not method.startswith("_")]
    if absent := [method for method in methods if not callable(getattr(found, method, None))]:
        raise ValueError(f"task.name = {name!r}: it is no task, for it lacks {', '.join(absent)}")
    return found


def check_choice(kind: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value`, or a ValueError that names it and what is allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {kind} {value!r}; allowed: {', '.join(allowed)}")
    return value
