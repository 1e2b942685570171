"""Singular spectra of weight matrices, and how far one is turned against another.

The paper's question is whether fine-tuning changes the singular values of a weight matrix or turns its
singular vectors. This file measures both for one pair of matrices, in float64; it knows no model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

Matrix = Tensor | np.ndarray


@dataclass(frozen=True)
class Spectrum:
    """The thin singular value decomposition W = left @ diag(values) @ right.T of W [m, n], r = min(m, n).

    left [m, r] and right [n, r] have orthonormal columns, values [r] descend; all are float64 on W's device.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the decomposed matrix."""
        return self.left.shape[0], self.right.shape[0]


@dataclass(frozen=True)
class Comparison:
    """How the spectrum of one matrix differs from that of another of the same shape, as numpy float64.

    values0 and values1 [r] are all singular values, descending. angles_left and angles_right [k] are the
    principal angles between the leading-k left (right) singular subspaces, in radians, ascending.
    """

    values0: np.ndarray
    values1: np.ndarray
    angles_left: np.ndarray
    angles_right: np.ndarray
    k: int

    @property
    def relative_change(self) -> np.ndarray:
        """|values1 - values0| / values0, [r]: 0 where both are 0, inf where only values0 is.

        Where a matrix is rank-deficient only up to rounding, both values and their ratio are rounding noise.
        """
        change = np.abs(self.values1 - self.values0)
        ratio = np.where(change == 0, 0.0, np.inf)
        return np.divide(change, self.values0, out=ratio, where=self.values0 > 0)


def as_matrix(W: Matrix, name: str = "matrix") -> Tensor:
    """W [m, n] as a detached float64 tensor on its own device; ValueError (with `name`) where W is unfit.

    Unfit is what is not 2-D, is empty, is not of a real floating dtype, or holds NaN or inf.
    """
    if not isinstance(W, Tensor):
        W = np.asarray(W)
        # Floats torch does not know (extended, big-endian) become ones it does.
        W = torch.tensor(W.astype(np.float64) if W.dtype.kind == "f" else W)
    if W.ndim != 2:
        raise ValueError(f"{name}: expected a 2-D matrix, got {W.ndim}-D of shape {tuple(W.shape)}")
    if W.numel() == 0:
        raise ValueError(f"{name}: the matrix is empty, its shape is {tuple(W.shape)}")
    if not W.is_floating_point():
        raise ValueError(f"{name}: expected real floating-point numbers, got {W.dtype}")
    W = W.detach().to(torch.float64)
    for problem, found in (("NaN", W.isnan()), ("inf", W.isinf())):
        if found.any():
            raise ValueError(f"{name}: {int(found.sum())} of {W.numel()} entries are {problem}")
    return W


def check_count(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int; ValueError naming it and the allowed range unless it is an integer in low..high."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in {low}..{high}, got {value!r}")
    return int(value)


def check_same_shape(shape0: tuple[int, ...], shape1: tuple[int, ...], name: str = "matrix") -> None:
    """ValueError naming both shapes unless they are equal."""
    if tuple(shape0) != tuple(shape1):
        raise ValueError(f"{name}: shapes differ, {tuple(shape0)} and {tuple(shape1)}")


def spectrum(W: Matrix, name: str = "matrix") -> Spectrum:
    """The Spectrum of W [m, n], of any real floating dtype, computed in float64 on W's device.

    `name` stands in the messages of the ValueErrors: not 2-D, empty, not floating, NaN, inf.
    """
    left, values, right_t = torch.linalg.svd(as_matrix(W, name), full_matrices=False)
    return Spectrum(left, values, right_t.T)


def principal_angles(A: Matrix, B: Matrix) -> np.ndarray:
    """The principal angles between span(A) and span(B), in radians, ascending, float64 [k].

    A and B are [m, k] with orthonormal columns. The cosines are the singular values of A^T B, the sines those
    of B - A A^T B. A cosine cannot tell angles under 1e-8 from 0, a sine cannot resolve those near pi/2, so
    each angle is read from the flatter of the two inverses (Björck & Golub 1973, Math. Comp. 27, 579-594).
    ValueError for an unfit matrix (see `as_matrix`) or shapes that differ.
    """
    A, B = as_matrix(A, "A"), as_matrix(B, "B")
    check_same_shape(A.shape, B.shape, "A and B")
    B = B.to(A.device)
    overlap = A.T @ B
    cosines = torch.linalg.svdvals(overlap).clamp(max=1.0)
    # The largest sine belongs to the smallest cosine, hence the flip.
    sines = torch.linalg.svdvals(B - A @ overlap).flip(0).clamp(max=1.0)
    angles = torch.where(cosines**2 > 0.5, torch.arcsin(sines), torch.arccos(cosines))
    return angles.sort().values.cpu().numpy()


def compare(W0: Matrix | Spectrum, W1: Matrix | Spectrum, k: int | None = None, name: str = "matrix") -> Comparison:
    """How W1's spectrum differs from W0's; each is a matrix [m, n] or its precomputed Spectrum.

    k is the dimension of the compared leading singular subspaces, min(m, n) by default. A subspace is well
    defined only where values[k - 1] > values[k]. At the default the smaller side's subspace is the whole
    space, so that its angles are 0 whatever happened: the default tells about the longer side only.
    ValueError (with `name`): an unfit matrix (see `as_matrix`), shapes that differ, k not in 1..min(m, n).
    """
    s0 = W0 if isinstance(W0, Spectrum) else spectrum(W0, f"{name} (first)")
    s1 = W1 if isinstance(W1, Spectrum) else spectrum(W1, f"{name} (second)")
    check_same_shape(s0.shape, s1.shape, name)
    rank = len(s0.values)
    k = check_count(f"{name}: k", rank if k is None else k, 1, rank)
    return Comparison(
        values0=s0.values.cpu().numpy(),
        values1=s1.values.cpu().numpy(),
        angles_left=principal_angles(s0.left[:, :k], s1.left[:, :k]),
        angles_right=principal_angles(s0.right[:, :k], s1.right[:, :k]),
        k=k,
    )


def direction_angles(s0: Spectrum, s1: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """The angle between the i-th singular vectors of two spectra: (left [r], right [r]), radians, 0..pi/2.

    Free of the vectors' signs. It shows where in the spectrum a rotation sits; among nearly equal singular
    values the vectors are arbitrary, and a large angle there means no change of the matrix.
    ValueError for shapes that differ.
    """
    check_same_shape(s0.shape, s1.shape, "spectra")
    return _column_angles(s0.left, s1.left), _column_angles(s0.right, s1.right)


def _column_angles(A: Tensor, B: Tensor) -> np.ndarray:
    """The sign-free angles between unit columns of A and B [m, r], by the chord: exact for small angles."""
    B = B.to(A.device)
    signs = torch.where((A * B).sum(0) < 0, -1.0, 1.0).to(A.dtype)
    half_chord = torch.linalg.vector_norm(A - signs * B, dim=0) / 2
    return 2 * torch.arcsin(half_chord.clamp(max=math.sqrt(0.5))).cpu().numpy()
