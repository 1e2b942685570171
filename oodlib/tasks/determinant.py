"""The determinant of a matrix of whole numbers (later code of arXiv:2509.12235): ID 2 x 2, OOD 3 x 3.

Half of the matrices are symmetric, no determinant is 0. Entries go from -4 to 4 in ID, from -5 to 5 in OOD; each matrix
of `new_entries` has a 5 or -5 in it, and four in five of OOD's.
"""

from __future__ import annotations

import numpy as np

from oodlib.tasks.matrices import Kind, Matrix, MatrixTask, echelon


def determinant(matrix: Matrix) -> int:
    """The exact determinant of a square matrix."""
    rank, minor = echelon(matrix)
    return minor if rank == len(matrix) else 0


def draw(rng: np.random.Generator, kind: Kind) -> Matrix:
    """A square matrix that is not singular; symmetric in half of the draws."""
    symmetric = rng.random() < 0.5
    while True:
        entries = rng.integers(-kind.largest, kind.largest + 1, (kind.rows, kind.columns))
        if symmetric:
            entries = np.triu(entries) + np.triu(entries, 1).T
        matrix = tuple(map(tuple, entries.tolist()))
        if (not kind.reached or np.abs(entries).max() == kind.largest) and determinant(matrix):
            return matrix


TASK = MatrixTask(
    "determinant",
    determinant,
    draw,
    {
        "id": Kind(2, 2, 4),
        "new_size": Kind(3, 3, 4),
        "new_entries": Kind(2, 2, 5, reached=True),
        "ood": Kind(3, 3, 5),
    },
    square=True,
)
