"""What all checks use: a check takes an answer, says "Right" and why, or raises `Wrong`.

A check computes what is asked in another way, or asks for what every right answer has, so that it takes any right one.
What it says of a wrong one names the fault and not the answer. Numbers are read from a run's tables, never from here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from scipy import stats

Z = stats.norm.ppf(0.975)
UNFILLED = "Fill in the cell above first."


class Wrong(AssertionError):
    """An answer that is not right. The message says what it lacks; a notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def demand(holds: Any, message: str) -> None:
    if not holds:
        raise Wrong(message)


def approve(insight: str) -> None:
    print(f"Right: {insight}")


def as_number(answer: Any) -> float:
    demand(answer is not ..., UNFILLED)
    demand(isinstance(answer, (int, float, np.number)), f"One number is asked for, not {answer!r}.")
    return float(answer)


def call(function: Any, *arguments: Any) -> Any:
    """What a reader's function returns; `Wrong` where it is not written yet."""
    demand(callable(function), "A function is asked for; give its name, without brackets.")
    try:
        found = function(*arguments)
    except NotImplementedError:
        raise Wrong(UNFILLED) from None
    demand(found is not None and found is not ..., "The function returns nothing.")
    return found


def check(function: Callable[..., None]) -> Callable[..., None]:
    """Says `Wrong` where an answer is of another kind than was asked for, too."""

    @wraps(function)
    def checked(*arguments: Any) -> None:
        try:
            function(*arguments)
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise Wrong(
                f"The answer is not of the kind that is asked for, or your function fails on it: "
                f"{type(error).__name__}: {error}."
            ) from error

    return checked
