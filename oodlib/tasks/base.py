"""Tasks: distributions of problems, in splits: one that training deals from, and others that change something of it.

A task is one file (or folder) here that assigns `TASK`: an object that keeps to the protocol below, or a function of
the options (a mapping) that returns one whose `parameters()` say what decides results. Nothing else in oodlib knows
which task runs. A task from elsewhere is named module:object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import TypeAdapter

from oodlib.registry import TASKS

OUTCOMES = ("correct", "wrong_value", "wrong_numbers", "illegal", "malformed")
STYLES = ("compact", "chat")

Outcome = Literal["correct", "wrong_value", "wrong_numbers", "illegal", "malformed"]


@dataclass(frozen=True)
class Split:
    """A set of problems that is measured.

    Attributes:
        name: what the tables call it.
        label: what figures and texts call it.
        changes: what it changes of the problems that training deals: nothing, or names such as "rule" and "numbers".
        colour: its colour in every figure.
        about: one line for a reader.
        probe: a point of a further curve (`value` on its axis), measured on few checkpoints and in no claim.
    """

    name: str
    label: str
    changes: tuple[str, ...] = ()
    colour: str = "#555555"
    about: str = ""
    probe: str = ""
    value: float = 0.0


@dataclass(frozen=True)
class Splits:
    """A task's splits: the one that is trained on, the headline of every figure, and all in order, probes apart."""

    trained: Split
    headline: Split
    others: tuple[Split, ...] = ()
    probes: tuple[Split, ...] = ()

    def __iter__(self) -> Iterator[Split]:
        return iter((self.trained, *self.others, self.headline))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(split.name for split in self)

    def __getitem__(self, name: str) -> Split:
        every = {split.name: split for split in (*self, *self.probes)}
        return every[check_choice("split", name, tuple(every))]

    def changing(self, *changes: str) -> Split | None:
        """The split that changes exactly this, if there is one."""
        return next((split for split in self if set(split.changes) == set(changes)), None)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Splits:
        """pydantic's ValidationError (a ValueError) for what describes no splits."""
        return TypeAdapter(cls).validate_python(values)


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one answer.

    Attributes:
        outcome: one of `OUTCOMES`; where an answer has several faults, the rightmost of that list.
        reward: the paper's reward for the task: of cards 5 for a correct answer, else the sum of the faults (negative).
        message: a sentence fit to be shown to the player, who may then try again.
        measures: further measures of the answer by name, each from 0 to 1; the same names for every answer of a task.
    """

    outcome: Outcome
    reward: float
    message: str
    measures: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Cloze:
    """An answer that breaks off where the model has to say what a symbol of the prompt counts for.

    Attributes:
        rule: the split whose rule the prompt states; "none" where it states none.
        symbol: what is to be valued.
        prompt: as `Task.prompt` returns it.
        begun: the answer so far.
        values: the texts that may follow, by what they say the symbol counts for; none is the beginning of another.
        under: what the symbol counts for under each split's rule, by the split's name.
    """

    rule: str
    symbol: str
    prompt: str | list[dict[str, str]]
    begun: str
    values: Mapping[int, str]
    under: Mapping[str, int]

    @property
    def split(self) -> str:
        """What the tables call the clozes with this rule."""
        return f"cloze_{self.rule}"


class Task(Protocol):
    """What the rest of oodlib asks of a task. Problems are the task's own, immutable type.

    A task whose prompts state a rule may also have `clozes(style) -> list[Cloze]`: what does a model believe of it? One
    with several right answers may list them all, `answers(problem, style)`, each as `answer` returns it. One may have
    `faults`, its own words for the measures of `lecture.MEASURES`.
    """

    name: str
    splits: Splits

    def split(self, name: str) -> list[Any]:
        """Every distinct solvable problem of a split (or of a probe, a fixed sample), in a fixed order."""

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
    absent = [method for method in methods if not callable(getattr(found, method, None))]
    if not isinstance(getattr(found, "splits", None), Splits):
        absent.append("splits")
    if absent:
        raise ValueError(f"task.name = {name!r}: it is no task, for it lacks {', '.join(absent)}")
    return found


def check_choice(kind: str, value: str, allowed: tuple[str, ...]) -> str:
    """`value`, or a ValueError that names it and what is allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {kind} {value!r}; allowed: {', '.join(allowed) or 'none'}")
    return value
