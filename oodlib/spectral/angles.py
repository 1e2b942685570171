"""Two weight matrices against each other: how far singular values changed and singular vectors turned, in float64.

The paper's question is whether fine-tuning changes the singular values of a weight matrix or turns its singular
vectors. `compare` is the only place where two matrices are compared; every metric is a function of its Comparison.
With r the shorter side, everything follows from matrices [r, r]: the two spectra and the products W0 D^T and D D^T
with D = W1 - W0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from oodlib.spectral.svd import (
    SMALL,
    Matrix,
    Spectrum,
    as_matrix,
    as_spectrum,
    check_count,
    check_same_shape,
    decompose,
    gram,
    roots,
)

COARSE = 4.0  # a sine from a Gram matrix errs by some 1.5e-8 of the change's norm over the singular value


@dataclass(frozen=True)
class Overlap:
    """How the singular vectors B [m, r] of one matrix lie to those A [m, r] of another, on one side.

    The cosines A^T B [r, r] are held as first @ second / scale. What B has outside span(A),
    B - A A^T B, has the coordinates `residual` [., r], or else, where no B was formed, the Gram matrix
    second^T beyond second / scales; neither where span(A) is the whole space. From a Gram matrix a sine errs by some
    sqrt(eps) ||D||_2 / scale (change_norm is ||D||_2), so where that is not small the residual is formed after all,
    from `apart`: what D^T has outside span(A) [., r].
    """

    first: Tensor
    second: Tensor
    scale: Tensor | None = None
    residual: Tensor | None = None
    beyond: Tensor | None = None
    apart: Callable[[], Tensor] | None = None
    change_norm: float = 0.0

    @cached_property
    def cosines(self) -> Tensor:
        """A^T B, [r, r]."""
        return self._columns(0, len(self.second))

    def _columns(self, low: int, high: int) -> Tensor:
        if "cosines" in self.__dict__:  # all of them were asked for before
            return self.cosines[:, low:high]
        product = self.first @ self.second[:, low:high]
        return product if self.scale is None else product / self.scale[low:high]

    @property
    def _coarse(self) -> Tensor:
        """For which columns of B, [r], the Gram matrix is not exact enough."""
        return self.change_norm >= COARSE * self.scale

    @cached_property
    def _apart(self) -> Tensor:
        return self.apart()

    def angles(self, low: int, high: int) -> np.ndarray:
        """The principal angles between A[:, low:high] and B[:, low:high], in radians, ascending, float64.

        The sines are the singular values of what B[:, low:high] has outside A[:, low:high]: exact for small
        angles, where a cosine sees nothing. Angles near pi/2 are read from the cosines (Björck & Golub 1973,
        Math. Comp. 27, 579-594).
        """
        rank = len(self.second)
        if self.residual is None and self.beyond is None and 2 * (high - low) > rank and (low == 0 or high == rank):
            others = (high, rank) if low == 0 else (0, low)  # in the whole space what is left turns by the same angles
            turned = self.angles(*others) if others[0] < others[1] else np.zeros(0)
            return np.concatenate([np.zeros(high - low - len(turned)), turned])
        columns = self._columns(low, high)
        rest = torch.cat([columns[:low], columns[high:]])
        if self.beyond is not None and not self._coarse[high - 1]:
            scaled = self.second[:, low:high] / self.scale[low:high]
            sines = roots(rest.T @ rest + scaled.T @ self.beyond @ scaled)
        else:
            if self.residual is not None:
                rest = torch.cat([rest, self.residual[:, low:high]])
            elif self.beyond is not None:
                outside = self._apart @ (self.second[:, low:high] / self.scale[low:high])
                rest = torch.cat([rest, torch.linalg.qr(outside, mode="r").R])
            sines = torch.linalg.svdvals(rest) if len(rest) else rest.new_zeros(0)
        sines = torch.cat([sines, sines.new_zeros(high - low - len(sines))]).clamp(max=1)
        angles = torch.arcsin(sines)
        if sines[0] ** 2 > 1 - 1e-6:
            cosines = torch.linalg.svdvals(columns[low:high]).clamp(max=1).flip(0)
            angles = torch.where(cosines**2 < 0.5, torch.arccos(cosines), angles)
        return angles.sort().values.cpu().numpy()

    def directions(self) -> np.ndarray:
        """The angle between the i-th columns of A and B, [r], radians, 0..pi/2, free of signs.

        It shows where in the spectrum a rotation is; among nearly equal singular values the vectors are arbitrary,
        and a large angle there means no change of the matrix.
        """
        along = self.cosines.diagonal()
        across = (self.cosines - torch.diag(along)).square().sum(0)
        if self.residual is not None:
            across = across + self.residual.square().sum(0)
        if self.beyond is not None:
            outside = ((self.beyond @ self.second) * self.second).sum(0).clamp(min=0)
            if self._coarse.any():
                outside[self._coarse] = (self._apart @ self.second[:, self._coarse]).square().sum(0)
            across = across + outside / self.scale**2
        return torch.atan2(across.sqrt(), along.abs()).cpu().numpy()

    def best_match(self) -> np.ndarray:
        """For each column of B the largest |cosine| with any column of A, [r]."""
        return self.cosines.abs().amax(0).clamp(max=1).cpu().numpy()


@dataclass(frozen=True)
class Comparison:
    """How the spectrum of one matrix differs from that of another of the same shape, as numpy float64.

    values0 and values1 [r] are all singular values, descending; change [r] those of the difference W1 - W0.
    first and second are the Spectra, left and right the Overlaps of their singular vectors, and k is the number of
    leading directions that `angles_left` and `angles_right` are of.
    """

    values0: np.ndarray
    values1: np.ndarray
    change: np.ndarray
    k: int
    first: Spectrum
    second: Spectrum
    left: Overlap
    right: Overlap

    @cached_property
    def angles_left(self) -> np.ndarray:
        """The principal angles between the leading-k left singular subspaces, [k], radians, ascending."""
        return self.left.angles(0, self.k)

    @cached_property
    def angles_right(self) -> np.ndarray:
        """The same of the right singular subspaces."""
        return self.right.angles(0, self.k)

    @property
    def relative_change(self) -> np.ndarray:
        """|values1 - values0| / values0, [r]: 0 where both are 0, inf where only values0 is.

        Where a matrix is rank-deficient only up to rounding, both values and their ratio are rounding noise.
        """
        change = np.abs(self.values1 - self.values0)
        out = np.where(change == 0, 0.0, np.inf)
        return np.divide(change, self.values0, out=out, where=self.values0 > 0)

    @property
    def change_ratio(self) -> float:
        """The Frobenius norm of W1 - W0 over that of W0; of a zero W0 0 or inf."""
        changed, norm = (self.change**2).sum(), (self.values0**2).sum()
        return float(changed / norm) ** 0.5 if norm else math.inf if changed else 0.0

    def wedin_bound(self, k: int) -> float:
        """`wedin_bound` of the two matrices."""
        check_count("k", k, 1, len(self.values0))
        after0, after1 = (np.append(values, 0.0)[k] for values in (self.values0, self.values1))
        gap = max(self.values1[k - 1] - after0, self.values0[k - 1] - after1)
        return math.asin(self.change[0] / gap) if gap > self.change[0] else math.pi / 2


def compare(W0: Matrix | Spectrum, W1: Matrix | Spectrum, k: int | None = None, name: str = "matrix") -> Comparison:
    """How W1's spectrum differs from W0's; each is a matrix [m, n] or its precomputed Spectrum (on the same device).

    k is the dimension of the compared leading singular subspaces, min(m, n) by default. A subspace is well defined
    only where values[k - 1] > values[k]: see `wedin_bound`. At the default the shorter side's subspace is the whole
    space, so that its angles are 0 whatever happened.
    ValueError (with `name`): an unfit matrix (see `as_matrix`), shapes that differ, k not in 1..min(m, n).
    """
    s0 = as_spectrum(W0, f"{name} (first)")
    A1 = W1.whole if isinstance(W1, Spectrum) else as_matrix(W1, f"{name} (second)")
    check_same_shape(s0.whole.shape, A1.shape, name)
    A1 = (A1.T if s0.tall else A1).to(s0.matrix.device)
    rank = len(s0.values)
    k = check_count(f"{name}: k", rank if k is None else k, 1, rank)
    change = A1 - s0.matrix
    if rank <= SMALL:
        change_values, change_gram, cross = torch.linalg.svdvals(change), None, None
    else:
        change_gram, cross = gram(change), s0.matrix @ change.T
        change_values = roots(change_gram)
    if not change.any():
        s1 = s0  # among equal singular values another decomposition would have other vectors
    elif isinstance(W1, Spectrum):
        s1 = W1
    else:
        known = None if cross is None else s0.gram + cross + cross.T + change_gram
        s1 = Spectrum(*decompose(A1, known), A1, s0.tall)
    sides = (Overlap(s0.short.T, s1.short), _long_overlap(s0, s1, cross, change_gram, float(change_values[0])))
    values = (values.cpu().numpy() for values in (s0.values, s1.values, change_values))
    return Comparison(*values, k, s0, s1, *(reversed(sides) if s0.tall else sides))


def _long_overlap(
    s0: Spectrum, s1: Spectrum, cross: Tensor | None, change_gram: Tensor | None, change_norm: float
) -> Overlap:
    """The Overlap of the longer side's vectors V0, V1 [n, r]; cross [r, r] is W0 D^T, change_gram D D^T.

    Where both spectra are well-conditioned no V is formed: as V = W^T U / s, V0^T V1 follows from V0^T W1^T, and since
    V1 = (W0 + D)^T U1 / s1, what V1 has outside span(V0) is that of D^T U1 / s1.
    """
    r, n = s0.matrix.shape
    if s0.given is not None or s1.given is not None:  # always where they are small
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


def principal_angles(A: Matrix, B: Matrix) -> np.ndarray:
    """The principal angles between span(A) and span(B), in radians, ascending, float64 [k].

    A and B are [m, k] with orthonormal columns. ValueError for an unfit matrix (see `as_matrix`) or shapes that differ.
    """
    A, B = as_matrix(A, "A"), as_matrix(B, "B")
    check_same_shape(A.shape, B.shape, "A and B")
    B = B.to(A.device)
    return Overlap(A.T, B, residual=B - A @ (A.T @ B)).angles(0, A.shape[1])
