"""The checks of the exercises on rotation and surgery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from oodlib.exercises.checking import UNFILLED, approve, call, check, demand
from oodlib.spectral import compare, restore, spectrum

if TYPE_CHECKING:
    from oodlib.widgets.bench import Operation  # with transformers, which takes seconds


@check
def principal_angles(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """angles(A, B), radians, of A and B [m, k] with orthonormal columns; made-up planes of known angles."""
    rng = np.random.default_rng(3)
    for known in ((0.1, 0.4, 1.2), (1e-9, 1e-5, 0.3), (0.0, 1e-12, 1.0), (1e-3, 1.5, np.pi / 2 - 1e-9)):
        angles = np.array(known)
        frame, mix, other = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (9, 3, 3))
        A, outside = frame[:, :3], frame[:, 3:6]
        B = A * np.cos(angles) + outside * np.sin(angles)
        found = np.sort(np.asarray(call(function, A @ mix, B @ other), dtype=float).ravel())
        demand(found.shape == angles.shape, f"{found.size} angles; planes of dimension 3 have 3.")
        demand(np.isfinite(found).all(), "NaN: rounding may push a cosine or a sine a little above 1.")
        demand(not np.allclose(np.radians(found), angles, atol=1e-6), "These are degrees; radians are asked for.")
        demand(np.allclose(found, angles, atol=1e-6), f"Angles of {angles.round(3)} come out as {found.round(3)}.")
        error = np.abs(found - angles)
        demand(
            error[angles < 0.01].max(initial=0) < 1e-13,
            "Small angles are lost: near 0 the cosine is flat (scipy too loses them beside large ones).",
        )
        demand(error[angles > 1.4].max(initial=0) < 1e-13, "Angles near 90° are lost: there the sine is flat.")
    approve("in float64 a cosine cannot tell angles below about 1e-8 from 0; the sine can, down to 1e-16.")


@check
def wedin(function: Callable[[np.ndarray, np.ndarray, float, int], float]) -> None:
    """bound(values0, values1, norm, k), radians: a true bound on every angle of the leading k vectors, and a good one.

    values0 and values1 descend; norm is the largest singular value of W1 - W0.
    """
    rng, close = np.random.default_rng(4), 0.01
    quarter_turn = (np.diag([1.0, 0.0]), np.array([[0.5, close], [close, 0.5]]))  # 45°, with a change of half the gap
    pairs = [quarter_turn, quarter_turn[::-1]]
    for size in (1e-6, 0.03, 0.1, 0.3, 1.0):
        W0 = np.linalg.qr(rng.normal(size=(6, 4)))[0] * [4.0, 3.0, 1.5, 0.2] @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
        D = rng.normal(size=(6, 4))
        pairs.append((W0, W0 + D * size / np.linalg.norm(D, 2)))
    for W0, W1 in pairs:
        for k in range(1, W0.shape[1]):
            both = compare(W0, W1, k)
            norm = float(both.change[0])
            bound = float(call(function, both.values0, both.values1, norm, k))
            largest = max(both.angles_left.max(), both.angles_right.max())
            gap = both.values0[k - 1] - both.values0[k] - norm  # what Weyl's inequality leaves of it: the weakest way
            weak = np.arcsin(norm / gap) if gap > norm else np.pi / 2
            at = f"values {both.values0.round(2)} and {both.values1.round(2)}, norm {norm:.2g}, k = {k}"
            demand(np.isfinite(bound), f"No number for {at}: what if the change is larger than the gap?")
            demand(bound <= np.pi / 2 + 1e-9, f"An angle cannot exceed 90°, pi/2: {at} gives {bound:.2f}.")
            demand(bound >= largest - 1e-9, f"Not a bound: {at} gives {bound:.3f}, and an angle is {largest:.3f}.")
            demand(bound <= weak + 1e-9, f"True, but weak: {at} gives {bound:.3g}. Between which values is the gap?")
    approve(
        "the gap lies between one matrix's k-th and the OTHER's next value; where it closes, an angle says nothing."
    )


@check
def restored(function: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> None:
    """edit(recipient, donor, k): the recipient [m, n] with the donor's leading k vectors and its own values."""
    rng = np.random.default_rng(5)
    for shape in ((5, 5), (7, 4), (4, 6)):
        recipient, donor = rng.normal(size=(2, *shape))
        for k in (1, 2, min(shape)):
            found = np.asarray(call(function, recipient.copy(), donor.copy(), k), dtype=float)
            demand(found.shape == shape, f"Shape {found.shape} where the matrices have {shape}.")
            own, other = spectrum(recipient), spectrum(donor)
            true = restore(torch.tensor(recipient), torch.tensor(donor), "vectors", k).numpy()
            new, old = ((x.left[:, :k] * x.values[:k]) @ x.right[:, :k].T for x in (other, own))
            theirs = recipient + (new - old).numpy()
            values = restore(torch.tensor(recipient), torch.tensor(donor), "values", k).numpy()
            demand(not np.allclose(found, theirs), "The donor's singular values have come along with its vectors.")
            demand(not np.allclose(found, values), "These are the donor's values and the recipient's vectors.")
            demand(np.allclose(found, true), f"Not so for k = {k} at {shape}: both sides change, the other terms stay.")
    approve(
        "signs need no care, for u and v of a pair flip together; that is why the pair is replaced, never one side."
    )


@check
def fewest_directions(chosen: Sequence[tuple[str, int]], operation: Operation) -> None:
    """Directions (matrix, index), the most important first, that give half of what was lost back, none to spare."""
    demand(chosen is not ..., UNFILLED)
    chosen = list(dict.fromkeys((str(name), int(i)) for name, i in chosen))
    strange = [d for d in chosen if not (s := operation.spectra.get(d[0])) or not 0 <= d[1] < len(s[0].values)]
    demand(not strange, f"{len(strange)} directions do not exist, such as {strange[:1]}.")
    back = operation.recovered(chosen)
    demand(back >= 0.5, f"These {len(chosen)} directions give {back:.0%} of the lost {operation.by} back.")
    fewer = chosen[: len(chosen) * 3 // 4]
    demand(operation.recovered(fewer) < 0.5, f"The first {len(fewer)} of your {len(chosen)} do it alone.")
    plain = operation.plain
    demand(len(chosen) < plain, f"The leading share of every matrix needs {plain}, no more than your {len(chosen)}.")
    approve(
        f"{len(chosen)} of {operation.directions} directions give {back:.0%} of the lost {operation.by} back; "
        f"the leading share of every matrix takes {plain}. Can you beat yourself?"
    )
