"""The rank of a matrix of whole numbers (later code of arXiv:2509.12235): ID 4 x 5, OOD 5 x 4, ranks from 1 to 4.

The official code deals rank 0 too, which only one matrix has. Its OOD configuration has the ID difficulty by mistake;
that is `new_size` here. In OOD the entries are larger too, from -5 to 5 in place of -4 to 4; each matrix of
`new_entries` has a 5 or -5 in it, and most of OOD's.
"""

from __future__ import annotations

import numpy as np

from oodlib.tasks.matrices import Kind, Matrix, MatrixTask, echelon


def rank(matrix: Matrix) -> int:
    """The exact rank of a matrix."""
    return echelon(matrix)[0]


def draw(rng: np.random.Generator, kind: Kind) -> Matrix:
    """A matrix of a rank drawn evenly from 1 to min(rows, columns).

    So many rows are drawn at random, the others are 0 or a sum or difference of one or two of them.
    """
    wanted = int(rng.integers(1, min(kind.rows, kind.columns) + 1))
    while True:
        rows = list(rng.integers(-kind.largest, kind.largest + 1, (wanted, kind.columns)))
        while len(rows) < kind.rows:
            row = np.zeros(kind.columns, int)
            for i in rng.permutation(wanted)[: rng.integers(3)]:
                row = row + rng.choice((-1, 1)) * rows[i]
            if np.abs(row).max() <= kind.largest:
                rows.append(row)
        matrix = tuple(tuple(rows[i].tolist()) for i in rng.permutation(kind.rows))
        if rank(matrix) == wanted and (not kind.reached or np.abs(rows).max() == kind.largest):
            return matrix


TASK = MatrixTask(
    "rank",
    rank,
    draw,
    {
        "id": Kind(4, 5, 4),
        "new_size": Kind(5, 4, 4),
        "new_entries": Kind(4, 5, 5, reached=True),
        "ood": Kind(5, 4, 5),
    },
)
