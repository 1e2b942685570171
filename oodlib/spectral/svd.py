"""The singular spectrum of one weight matrix, in float64.

Large matrices take a shorter way than an SVD: with r the shorter side, the eigenvectors of W W^T [r, r] give values
and vectors. In float64 that is as exact as an SVD, except for directions far below the largest singular value; those
are decomposed separately (`decompose`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

Matrix = Tensor | np.ndarray
Count = int | float | str
SMALL = 64  # shorter sides up to this take an SVD
WEAK = 1e-2  # directions below this share of the largest singular value lose digits in W W^T, and are taken apart
LOST = 1e-12  # below this share they are rounding: the matrix is rank-deficient


@dataclass(frozen=True)
class Spectrum:
    """The thin singular value decomposition W = left @ diag(values) @ right.T of W [m, n], r = min(m, n).

    left [m, r] and right [n, r] have orthonormal columns, values [r] descend; all are float64 on W's device.
    short: the vectors of the shorter side [r, r]. given: those of the longer side; where None they are
    formed from W when first asked for. matrix: W in float64 with the shorter side first. tall: whether m > n.
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
    def whole(self) -> Tensor:
        """W itself, [m, n]."""
        return self.matrix.T if self.tall else self.matrix

    @cached_property
    def gram(self) -> Tensor:
        """W W^T [r, r], the shorter side outside."""
        return (self.short * self.values**2) @ self.short.T


def spectrum(W: Matrix, name: str = "matrix") -> Spectrum:
    """The Spectrum of W [m, n], of any real floating dtype, computed in float64 on W's device.

    ValueErrors as for `as_matrix`; `name` stands in their messages.
    """
    W = as_matrix(W, name)
    tall = W.shape[0] > W.shape[1]
    A = W.T if tall else W
    return Spectrum(*decompose(A), A, tall)


def as_spectrum(W: Matrix | Spectrum, name: str = "matrix") -> Spectrum:
    """W's `spectrum`, or W itself where it is one."""
    return W if isinstance(W, Spectrum) else spectrum(W, name)


def as_matrix(W: Matrix, name: str = "matrix") -> Tensor:
    """W [m, n] as a detached float64 tensor on its own device.

    ValueError (with `name`) unless it is 2-D, not empty, of a real floating dtype, and free of NaN and inf.
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
        for problem, entries in (("NaN", W.isnan()), ("inf", W.isinf())):
            if entries.any():
                raise ValueError(f"{name}: {int(entries.sum())} of {W.numel()} entries are {problem}")
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


def count_of(k: Count, rank: int) -> int:
    """How many of `rank` directions `k` means: a number (5, "5"), or a share (0.2, "20%") and then at least one.

    ValueError for anything but a whole number from 1 and a share above 0 and up to 1.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", str(k).strip())
    share = k if isinstance(k, float) else float(match[1]) / 100 if match and match[1] else None
    if share is not None and 0 < share <= 1:
        return max(1, round(share * rank))
    if share is None and match and int(match[2]) > 0:
        return int(match[2])
    raise ValueError(
        f"k {k!r}: allowed are a number of directions from 1, or a share from above 0% to 100%, written with the sign"
    )


def decompose(A: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors of the shorter side, values, and those of the longer side (None: A^T short / values) of A [r, n], r <= n;
    `known` is A A^T where it is known.

    An eigenvector of A A^T errs by eps * largest^2 / (value^2 - next^2), a singular vector by eps * largest / (value -
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


def roots(gram_matrix: Tensor) -> Tensor:
    """The square roots of a positive semidefinite matrix's eigenvalues, descending; 0 for what is only rounding."""
    squares = torch.linalg.eigvalsh(gram_matrix).flip(0)
    rounding = len(squares) * torch.finfo(squares.dtype).eps * squares[0]
    return torch.where(squares > rounding, squares, 0.0).sqrt()
