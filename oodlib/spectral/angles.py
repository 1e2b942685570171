"""How the singular vectors of one matrix lie to those of another, on one side: angles and best matches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

COARSE = 4.0  # a sine from a Gram matrix errs by some 1.5e-8 of the change's norm over the singular value


@dataclass(frozen=True)
class Overlap:
    """How the singular vectors B [m, r] of one matrix lie to those A [m, r] of another, on one side.

    The cosines A^T B [r, r] are held as first @ second / scale, or as `second` alone. What B has outside span(A),
    B - A A^T B, has the coordinates `residual` [., r], or else, where no B was formed, the Gram matrix
    second^T beyond second / scales; neither where span(A) is the whole space. From a Gram matrix a sine errs by some
    sqrt(eps) ||D||_2 / scale (change_norm is ||D||_2), so where that is not small the residual is formed after all,
    from `apart`: what D^T has outside span(A) [., r].
    """

    first: Tensor | None
    second: Tensor
    scale: Tensor | None = None
    residual: Tensor | None = None
    beyond: Tensor | None = None
    apart: Callable[[], Tensor] | None = None
    change_norm: float = 0.0

    @cached_property
    def cosines(self) -> Tensor:
        """A^T B, [r, r]."""
        return self._times(self.second, self.scale)

    def _times(self, second: Tensor, scale: Tensor | None) -> Tensor:
        product = second if self.first is None else self.first @ second
        return product if scale is None else product / scale

    def _columns(self, low: int, high: int) -> Tensor:
        if "cosines" in self.__dict__:  # all of them were asked for before
            return self.cosines[:, low:high]
        return self._times(self.second[:, low:high], None if self.scale is None else self.scale[low:high])

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
            mine = self.second[:, low:high] / self.scale[low:high]
            sines = roots(rest.T @ rest + mine.T @ self.beyond @ mine)
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
        """The angle between the i-th columns of A and B, [r], radians, 0..pi/2, free of signs."""
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


def roots(gram_matrix: Tensor) -> Tensor:
    """The square roots of a positive semidefinite matrix's eigenvalues, descending; 0 for what is only rounding."""
    squares = torch.linalg.eigvalsh(gram_matrix).flip(0)
    rounding = len(squares) * torch.finfo(squares.dtype).eps * squares[0]
    return torch.where(squares > rounding, squares, 0.0).sqrt()
