"""What the tasks on matrices of whole numbers share: one whole number is asked of a matrix, as {"answer": N}.

They are tasks of the later code of arXiv:2509.12235, which changes the size and the entries of its training matrices at
once. So there are four corners: the size of training or another, the entries of training or larger ones. A split is a
fixed sample of distinct matrices, and none of these is dealt in training. Values are exact: elimination in whole
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from oodlib.io import shown
from oodlib.tasks.base import STYLES, Split, Splits, Verdict, check_choice

Matrix = tuple[tuple[int, ...], ...]

HELD = 400  # distinct matrices of each split that are measured
LARGEST, WIDEST = 99, 8  # of matrices from elsewhere
_FIELD = re.compile(r"""["']answer["']\s*:\s*(-?[ ]?[0-9](?:[ ]?[0-9]){0,11})\s*\}""")


@dataclass(frozen=True)
class Problem:
    """A matrix, as rows of whole numbers."""

    matrix: Matrix


@dataclass(frozen=True)
class Kind:
    """What matrices a split deals: rows, columns, the largest absolute value of an entry; `reached`: one has it."""

    rows: int
    columns: int
    largest: int
    reached: bool = False


def echelon(matrix: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The rank of a matrix, and its leading minor of that size up to the choice of columns, with its sign.

    By fraction-free elimination (Bareiss 1968): every entry stays a minor of the matrix, so every division is exact.
    For a square matrix of full rank the second number is the determinant.
    """
    rows, rank, pivot, sign = [list(row) for row in matrix], 0, 1, 1
    for column in range(len(rows[0])):
        chosen = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if chosen is None:
            continue
        if chosen != rank:
            rows[rank], rows[chosen], sign = rows[chosen], rows[rank], -sign
        top = rows[rank]
        for row in rows[rank + 1 :]:
            first = row[column]
            for j in range(column, len(row)):
                row[j] = (row[j] * top[column] - first * top[j]) // pivot
        pivot, rank = top[column], rank + 1
        if rank == len(rows):
            break
    return rank, sign * pivot


class MatrixTask:
    """A task on matrices.

    Attributes:
        kinds: what each split deals, by its name: id, new_size, new_entries and ood.
    """

    faults: ClassVar = {"wrong_value": "more give another number"}  # what texts call the faults of its answers

    def __init__(
        self,
        name: str,
        value: Callable[[Matrix], int],
        draw: Callable[[np.random.Generator, Kind], Matrix],
        kinds: dict[str, Kind],
        square: bool = False,
    ):
        self.name, self.value, self.draw, self.kinds, self.square = name, value, draw, kinds, square
        about = {n: f"{k.rows} x {k.columns}, entries from -{k.largest} to {k.largest}" for n, k in kinds.items()}
        self.splits = Splits(
            trained=Split("id", "ID", (), "#0072B2", about["id"]),
            others=(
                Split("new_size", "new size", ("size",), "#999933", about["new_size"]),
                Split("new_entries", "new entries", ("entries",), "#882255", about["new_entries"]),
            ),
            headline=Split("ood", "OOD", ("size", "entries"), "#D55E00", f"the paper's: {about['ood']}"),
        )
        self._held: dict[str, tuple[Problem, ...]] = {}

    def problem(self, matrix: Sequence[Sequence[int]]) -> Problem:
        """A problem from rows of whole numbers.

        ValueError for rows of different lengths, an entry that is no whole number from -99 to 99, more than 8 rows or
        columns or none, and, for a determinant, a matrix that is not square.
        """
        matrix = matrix.tolist() if isinstance(matrix, np.ndarray) else matrix
        if not isinstance(matrix, list | tuple):
            raise ValueError(f"{shown(matrix)} is no matrix: give rows of whole numbers")
        rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in matrix]
        if not rows or not all(isinstance(row, list | tuple) for row in rows) or len({len(row) for row in rows}) != 1:
            raise ValueError(f"{shown(matrix)} is no matrix: its rows must be lists of one length")
        if not 1 <= len(rows) <= WIDEST or not 1 <= len(rows[0]) <= WIDEST:
            raise ValueError(f"a matrix of {len(rows)} x {len(rows[0])}: 1 to {WIDEST} rows and columns are allowed")
        for entry in (entry for row in rows for entry in row):
            if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or abs(int(entry)) > LARGEST:
                raise ValueError(f"the entry {shown(entry)} is not a whole number from -{LARGEST} to {LARGEST}")
        if self.square and len(rows) != len(rows[0]):
            raise ValueError(f"a matrix of {len(rows)} x {len(rows[0])} has no {self.name}: it must be square")
        return Problem(tuple(tuple(map(int, row)) for row in rows))

    def split(self, name: str) -> list[Problem]:
        """HELD distinct matrices of a split, always the same ones."""
        kind, found, rng = self.kinds[self.splits[name].name], dict[Problem, None](), np.random.default_rng(0)
        if name not in self._held:
            while len(found) < HELD:
                found[Problem(self.draw(rng, kind))] = None
            self._held[name] = tuple(found)
        return list(self._held[name])

    def sample(self, rng: np.random.Generator, split: str, n: int) -> list[Problem]:
        """`n` matrices drawn at random as a split's are, none of them among those that are measured."""
        kind, measured, found = self.kinds[self.splits[split].name], set(self.split(split)), []
        while len(found) < n:
            if (problem := Problem(self.draw(rng, kind))) not in measured:
                found.append(problem)
        return found

    def prompt(self, problem: Problem, style: str) -> str | list[dict[str, str]]:
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return self._compact(problem, "json")
        text = (
            f"Compute the {self.name} of this matrix of whole numbers.\nMatrix: {[list(r) for r in problem.matrix]}\n"
            'Answer with one JSON object and nothing else: {"answer": N}, where N is a whole number.'
        )
        return [{"role": "user", "content": text}]

    def answer(self, problem: Problem, style: str, rng: np.random.Generator) -> str | list[dict[str, str]]:
        """The right answer; there is one, so `rng` draws nothing."""
        check_choice("prompt style", style, STYLES)
        value = self.value(problem.matrix)
        if style == "compact":
            return _compact_answer(value, "json")
        return [{"role": "assistant", "content": f'{{"answer": {value}}}'}]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge an answer: the last {"answer": N} in it, else it is malformed. Reward: 5 or -1, as the official code's.

        Single blanks between N's digits do not count, for the words of a tiny model are digits.
        """
        said = None
        for match in _FIELD.finditer(text):
            said = match[1]
        if said is None:
            return Verdict("malformed", -1.0, 'No answer found. Answer with {"answer": N}, N being a whole number.')
        if int(said.replace(" ", "")) == self.value(problem.matrix):
            return Verdict("correct", 5.0, f"Correct: this is the {self.name}.")
        return Verdict("wrong_value", -1.0, f"{said} is not the {self.name}.")

    def feedback(self, problem: Problem, verdict: Verdict, style: str) -> str | list[dict[str, str]]:
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return "no ; as json :\n"
        return [{"role": "user", "content": f"{verdict.message} Try again, in the same format."}]

    def label(self, problem: Problem) -> str:
        return " / ".join(" ".join(map(str, row)) for row in problem.matrix)

    # ---- for a tiny base model -----------------------------------------------------------------------

    def words(self) -> list[str]:
        """Every word of the compact style: entries are words, the answer is written in digits."""
        largest = max(kind.largest for kind in self.kinds.values())
        digits = [str(n) for n in range(10)]
        entries = [str(n) for n in range(-largest, largest + 1) if str(n) not in digits]
        return [*digits, *entries, "-", "/", ";", ":", "as", "no", "plain", "json", self.name, '{"answer":', "}"]

    def pretraining_dialogue(
        self, rng: np.random.Generator, wrong_tries: int = 0, belief: float = 0.0, done: float = 1.0
    ) -> list[str]:
        """A compact dialogue for a base model: a share `belief` of the matrices as in `ood`, the others of any split.

        JSON is asked for in 30 % of the prompts and given in 30 % of those, as in general_points.
        """
        names = list(self.kinds)
        kind = self.kinds["ood" if rng.random() < belief else names[rng.integers(len(names))]]
        problem = Problem(self.draw(rng, kind))
        asked = "json" if rng.random() < 0.3 else "plain"
        given = "json" if asked == "json" and rng.random() < 0.3 else "plain"
        value, dialogue = self.value(problem.matrix), [self._compact(problem, asked)]
        for _ in range(wrong_tries):
            wrong = value + int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)
            dialogue += [_compact_answer(wrong, given), f"no ; as {asked} :\n"]
        return [*dialogue, _compact_answer(value, given)]

    def _compact(self, problem: Problem, fmt: str) -> str:
        return f"{self.name} {self.label(problem)} ; as {fmt} :\n"


def _compact_answer(value: int, fmt: str) -> str:
    digits = " ".join(str(value))
    return f'{{"answer": {digits} }}' if fmt == "json" else digits
