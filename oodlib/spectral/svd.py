"""Singular spectra of weight matrices, and how far one is turned against another.

The paper's question is whether fine-tuning changes the singular values of a weight matrix or turns its singular
vectors. This file measures both for one pair of matrices, in float64; it knows no model.

Large matrices go a shorter way than an SVD: with r the shorter side, everything asked here follows from matrices
[r, r], the eigenvectors of W W^T and the products W0 D^T, D D^T with D = W1 - W0. In float64 that is as exact as an
SVD, save for directions far below the largest singular value; those are decomposed apart (`decompose`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from oodlib.spectral.angles import Overlap, roots

Matrix = Tensor | np.ndarray
SMALL = 64  # shorter sides up to this take an SVD
WEAK = 1e-2  # directions below this share of the largest singular value lose digits in W W^T, and are taken apart
LOST = 1e-12  # below this share they are rounding: the matrix is rank-deficient


@dataclass(frozen=True)
class Spectrum:
    """The thin singular value decomposition W = left @ diag(values) @ right.T of W [m, n], r = min(m, n).

    left [m, r] and right [n, r] have orthonormal columns, values [r] descend; all are float64 on W's device.
    short: the vectors of the shorter side [r, r]. given: those of the longer side; where None they are
    formed from W when first asked for, and `matrix` is then W with the shorter side first.
    """

    short: Tensor
    values: Tensor
    given: Tensor | None
    matrix: Tensor
    tall: bool

    @cached_property
    def long(self) -> Tensor:
        """The vectors of the longer side, [max(m, n), r]."""
        return self.given if self.given is not None else (self.matrix.T @ self.short) / self.values

    @property
    def left(self) -> Tensor:
        return self.long if self.tall else self.short

    @property
    def right(self) -> Tensor:
        return self.short if self.tall else self.long

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the decomposed matrix."""
        r, n = self.matrix.shape
        return (n, r) if self.tall else (r, n)

    @cached_property
    def gram(self) -> Tensor:
        """W W^T [r, r], the shorter side outside."""
        return (self.short * self.values**2) @ self.short.T

    def to(self, device: torch.device) -> Spectrum:
        if device == self.matrix.device:
            return self
        given = None if self.given is None else self.given.to(device)
        return Spectrum(self.short.to(device), self.values.to(device), given, self.matrix.to(device), self.tall)


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
    if not math.isfinite(float(W.sum())):  # one pass; a sum of finite numbers may overflow, so look closer
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
    W = as_matrix(W, name)
    tall = W.shape[0] > W.shape[1]
    A = W.T if tall else W
    return Spectrum(*decompose(A), A, tall)


def decompose(A: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors of the shorter side, values, and those of the longer side (None: A^T short / values) of A [r, n], r <= n;
    `known` is A A^T where it is known.

    An eigenvector of A A^T errs by eps * largest^2 / (own^2 - next^2), a singular vector by eps * largest / (own -
    next). So what is weak against the largest is decomposed apart, in the same way, where it is the largest: A^T on
    the span of the weak directions, without its rounding along the strong ones.
    """
    if len(A) > SMALL:
        squares, short = torch.linalg.eigh(gram(A) if known is None else known)
        values, short = squares.flip(0).clamp(min=0).sqrt(), short.flip(1)
        strong = int((values > WEAK * values[0]).sum())
        if strong == len(values):
            return short, values, None
        if strong:
            lead = (A.T @ short[:, :strong]) / values[:strong]
            weak = A.T @ short[:, strong:]
            weak = weak - lead @ (lead.T @ weak)
            turn, small, rest = decompose(weak.T)
            if small[-1] > LOST * values[0]:
                rest = (weak @ turn) / small if rest is None else rest
                short = torch.cat([short[:, :strong], short[:, strong:] @ turn], 1)
                return short, torch.cat([values[:strong], small]), torch.cat([lead, rest], 1)
    left, values, right_t = torch.linalg.svd(A, full_matrices=False)
    return left, values, right_t.T


def gram(A: Tensor, blocks: int = 4) -> Tensor:
    """A A^T [r, r] of A [r, n]; only the lower blocks are multiplied."""
    edges = [len(A) * i // blocks for i in range(blocks + 1)]
    product = A.new_empty(len(A), len(A))
    for low, high in pairwise(edges):
        block = A[low:] @ A[low:high].T
        product[low:, low:high], product[low:high, low:] = block, block.T
    return product


# ---- one spectrum against another ------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How the spectrum of one matrix differs from that of another of the same shape, as numpy float64.

    values0 and values1 [r] are all singular values, descending; change [r] those of the difference W1 - W0.
    angles_left and angles_right [k] are the principal angles between the leading-k left (right) singular
    subspaces, in radians, ascending; where `k` is a list, dictionaries by k. first and second are the Spectra,
    left and right the Overlaps of their singular vectors.
    """

    values0: np.ndarray
    values1: np.ndarray
    change: np.ndarray
    angles_left: np.ndarray | dict[int, np.ndarray]
    angles_right: np.ndarray | dict[int, np.ndarray]
    k: int | list[int]
    first: Spectrum
    second: Spectrum
    left: Overlap
    right: Overlap

    @property
    def relative_change(self) -> np.ndarray:
        """`relative_change` of the singular values, [r].

        Where a matrix is rank-deficient only up to rounding, both values and their ratio are rounding noise.
        """
        return relative_change(self.values0, self.values1)

    def wedin_bound(self, k: int) -> float:
        """`wedin_bound` of the two matrices."""
        return _wedin(self.values0, self.values1, self.change[0], check_count("k", k, 1, len(self.values0)))


def relative_change(values0: np.ndarray, values1: np.ndarray) -> np.ndarray:
    """|values1 - values0| / values0, [r]: 0 where both are 0, inf where only values0 is."""
    change = np.abs(values1 - values0)
    return np.divide(change, values0, out=np.where(change == 0, 0.0, np.inf), where=values0 > 0)


def compare(
    W0: Matrix | Spectrum, W1: Matrix | Spectrum, k: int | Iterable[int] | None = None, name: str = "matrix"
) -> Comparison:
    """How W1's spectrum differs from W0's; each is a matrix [m, n] or its precomputed Spectrum.

    k is the dimension of the compared leading singular subspaces, min(m, n) by default, or several of them. A
    subspace is well defined only where values[k - 1] > values[k]: see `wedin_bound`. At the default the shorter
    side's subspace is the whole space, so that its angles are 0 whatever happened.
    ValueError (with `name`): an unfit matrix (see `as_matrix`), shapes that differ, k not in 1..min(m, n).
    """
    s0 = W0 if isinstance(W0, Spectrum) else spectrum(W0, f"{name} (first)")
    A1 = W1.matrix.T if isinstance(W1, Spectrum) and W1.tall else W1
    A1 = A1.matrix if isinstance(A1, Spectrum) else as_matrix(A1, f"{name} (second)")
    check_same_shape(s0.shape, A1.shape, name)
    A1 = (A1.T if s0.tall else A1).to(s0.matrix.device)
    rank = len(s0.values)
    several = isinstance(k, Iterable) and not isinstance(k, str)
    ks = [check_count(f"{name}: k", i, 1, rank) for i in (k if several else [rank if k is None else k])]
    change = A1 - s0.matrix
    if rank <= SMALL:
        change_values, change_gram, cross = torch.linalg.svdvals(change), None, None
    else:
        change_gram, cross = gram(change), s0.matrix @ change.T
        change_values = roots(change_gram)
    if not change.any():
        s1 = s0  # among equal singular values another decomposition would have other vectors
    elif isinstance(W1, Spectrum):
        s1 = W1.to(s0.matrix.device)
    else:
        known = None if cross is None else s0.gram + cross + cross.T + change_gram
        s1 = Spectrum(*decompose(A1, known), A1, s0.tall)
    short = Overlap(s0.short.T, s1.short)
    long = _long_overlap(s0, s1, cross, change_gram, float(change_values[0]))
    left, right = (long, short) if s0.tall else (short, long)
    if several:
        _ = left.cosines, right.cosines  # at once, and not again for each k
    angles = [{i: side.angles(0, i) for i in ks} for side in (left, right)]
    if not several:
        angles = [of_side[ks[0]] for of_side in angles]
    values = (s0.values.cpu().numpy(), s1.values.cpu().numpy(), change_values.cpu().numpy())
    return Comparison(*values, *angles, ks if several else ks[0], s0, s1, left, right)


def _long_overlap(
    s0: Spectrum, s1: Spectrum, cross: Tensor | None, change_gram: Tensor | None, change_norm: float
) -> Overlap:
    """The Overlap of the longer side's vectors V0, V1 [n, r]; cross [r, r] is W0 D^T, change_gram D D^T.

    Where both spectra are well-conditioned no V is formed: as V = W^T U / s, V0^T V1 follows from V0^T W1^T, and since
    V1 = (W0 + D)^T U1 / s1, what V1 has outside span(V0) is that of D^T U1 / s1.
    """
    r, n = s0.matrix.shape
    if s0.given is not None or s1.given is not None or cross is None:
        first, second = s0.long.T, s1.long
        if n == r:
            return Overlap(first, second)
        residual = second - s0.long @ (first @ second)
        return Overlap(first, second, residual=torch.linalg.qr(residual, mode="r").R)
    turned = (s0.short.T @ cross) / s0.values[:, None]  # V0^T D^T
    whole = turned + s0.values[:, None] * s0.short.T  # V0^T W1^T
    if n == r:
        return Overlap(whole, s1.short, s1.values)

    def apart() -> Tensor:
        return (s1.matrix - s0.matrix).T - s0.long @ turned

    return Overlap(whole, s1.short, s1.values, None, change_gram - turned.T @ turned, apart, change_norm)


def wedin_bound(W0: Matrix | Spectrum, W1: Matrix | Spectrum, k: int) -> float:
    """How far the leading-k singular subspaces of W1 can be turned from those of W0, left and right, in radians.

    With s the singular values and D = W1 - W0, no principal angle exceeds arcsin(||D||_2 / gap), where gap is
    s1[k] - s0[k+1] or s0[k] - s1[k+1], whichever is larger (Wedin 1972, BIT 12, 99-111; for symmetric matrices
    Davis & Kahan 1970). pi/2, which says nothing, where the gap is not larger than ||D||_2: then angles seen at this
    k may be an accident of the basis. ValueErrors as for `compare`.
    """
    return compare(W0, W1, k).wedin_bound(k)


def _wedin(values0: np.ndarray, values1: np.ndarray, change_norm: float, k: int) -> float:
    after0, after1 = (np.append(v, 0.0)[k] for v in (values0, values1))
    gap = max(values1[k - 1] - after0, values0[k - 1] - after1)
    return math.asin(change_norm / gap) if gap > change_norm else math.pi / 2


def principal_angles(A: Matrix, B: Matrix) -> np.ndarray:
    """The principal angles between span(A) and span(B), in radians, ascending, float64 [k].

    A and B are [m, k] with orthonormal columns. ValueError for an unfit matrix (see `as_matrix`) or shapes that differ.
    """
    A, B = as_matrix(A, "A"), as_matrix(B, "B")
    check_same_shape(A.shape, B.shape, "A and B")
    B = B.to(A.device)
    return Overlap(A.T, B, residual=B - A @ (A.T @ B)).angles(0, A.shape[1])


def direction_angles(s0: Spectrum, s1: Spectrum) -> tuple[np.ndarray, np.ndarray]:
    """The angle between the i-th singular vectors of two spectra: (left [r], right [r]), radians, 0..pi/2.

    Free of the vectors' signs. It shows where in the spectrum a rotation sits; among nearly equal singular
    values the vectors are arbitrary, and a large angle there means no change of the matrix.
    ValueError for shapes that differ.
    """
    both = compare(s0, s1, 1, "spectra")
    return both.left.directions(), both.right.directions()
