"""Surgery on weight matrices: a recipient gets some of a donor's singular vectors or singular values.

The paper puts the singular vectors (or values) of the checkpoint with the best OOD accuracy back into a later
one, to see which of the two carries the lost accuracy. `random_rotation`, `random_signs` and `random_change`
add the null controls that the paper lacks. All arithmetic is in float64; results have the recipient's shape, dtype
and device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from oodlib.spectral.svd import Spectrum, as_matrix, check_count, check_same_shape, spectrum

PARTS = ("vectors", "values")
Spectra = tuple[Spectrum, Spectrum]


def restore(
    recipient: Tensor,
    donor: Tensor,
    part: str = "vectors",
    k_top: int | None = None,
    k_tail: int = 0,
    *,
    spectra: Spectra | None = None,
) -> Tensor:
    """The recipient [m, n] with the donor's part of its spectrum at the first k_top and last k_tail indices.

    With recipient = sum_i s_i u_i v_i^T and donor = sum_i t_i a_i b_i^T, part "vectors" replaces u_i, v_i by
    a_i, b_i and keeps s_i; part "values" replaces s_i by t_i and keeps u_i, v_i. The other terms stay. New
    vectors are not made orthogonal to those that stay, so that a partial edit may shift singular values.
    k_top=None means all r = min(m, n) indices when k_tail is 0, and none otherwise.
    `spectra` (recipient's, donor's) saves the decompositions when a pair is edited many times.
    ValueError: unknown part; k_top or k_tail not in 0..r, or k_top + k_tail > r; shapes that differ; an unfit
    matrix (see `spectra.as_matrix`); a spectrum that is not its matrix's.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}, allowed are {', '.join(map(repr, PARTS))}")
    weight, own, other = _prepare(recipient, donor, spectra)
    chosen = _chosen(len(own.values), k_top, k_tail).to(weight.device)
    u, s, v = own.left[:, chosen], own.values[chosen], own.right[:, chosen]
    if part == "vectors":
        new = (other.left[:, chosen] * s) @ other.right[:, chosen].T
    else:
        new = (u * other.values[chosen]) @ v.T
    return (weight + new - (u * s) @ v.T).to(recipient.dtype)


def random_rotation(
    recipient: Tensor,
    donor: Tensor,
    k_top: int | None = None,
    seed: int = 0,
    spectra: Spectra | None = None,
) -> Tensor:
    """The null control of restore(part="vectors"): the same angles, in random directions.

    The recipient's leading k_top (default min(m, n)) left and right singular vectors are each turned by
    `random_turn`, with independent draws, and keep their singular values. The donor's vectors, with signs
    chosen jointly for u_i and v_i so that they are closest to the recipient's, only set the angles.
    Equal angles are not an equal change of the matrix: a donor's rotation among nearly equal singular values,
    common to left and right, changes little, while the random one does not respect it. Compare the distances
    ||edited - recipient|| of the two edits before reading anything into their accuracies; `random_signs` has both.
    The same seed gives the same draws on every device. ValueErrors as for `restore`.
    """
    return _turned(recipient, donor, k_top, seed, spectra, signs=False)


def random_signs(
    recipient: Tensor,
    donor: Tensor,
    k_top: int | None = None,
    seed: int = 0,
    spectra: Spectra | None = None,
) -> Tensor:
    """The closest null of restore(part="vectors"): the same angles AND the same distance, each mixing with random sign.

    In the recipient's singular bases the donor's vectors are M = U^T A on the left and N = V^T B on the right. With a
    random diagonal D of +1 and -1, the same on both sides, D M D and D N D have the same principal angles, and since
    D S D = S the change D (M S N^T - S) D has the same norm: every direction mixes with the same others, as strongly,
    only one way or the other at random. Outside the spans the directions are random, as in `random_turn`.
    Arguments and errors as for `random_rotation`.
    """
    return _turned(recipient, donor, k_top, seed, spectra, signs=True)


def _turned(
    recipient: Tensor, donor: Tensor, k_top: int | None, seed: int, spectra: Spectra | None, signs: bool
) -> Tensor:
    weight, own, other = _prepare(recipient, donor, spectra)
    rank = len(own.values)
    k = check_count("k_top", rank if k_top is None else k_top, 0, rank)
    u, s, v = own.left[:, :k], own.values[:k], own.right[:, :k]
    a, b = other.left[:, :k], other.right[:, :k]
    nearest = torch.where((u * a).sum(0) + (v * b).sum(0) < 0, -1.0, 1.0).to(s.dtype)
    generator = torch.Generator().manual_seed(seed)
    H = torch.diag(2.0 * torch.randint(2, (k,), generator=generator).to(s) - 1) if signs else None
    left, right = (random_turn(*pair, generator, H) for pair in ((u, a * nearest), (v, b * nearest)))
    return (weight + (left * s) @ right.T - (u * s) @ v.T).to(recipient.dtype)


def random_change(recipient: Tensor, edited: Tensor, seed: int = 0) -> Tensor:
    """The other null control: the recipient [m, n] moved as far as `edited` is, in a random direction.

    The change is a Gaussian matrix scaled to the Frobenius norm of edited - recipient. It matches the distance,
    as `random_rotation` matches the angles. ValueError: shapes that differ, an unfit matrix.
    """
    weight, other = as_matrix(recipient, "recipient"), as_matrix(edited, "edited")
    check_same_shape(weight.shape, other.shape, "recipient and edited")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
    return (weight + noise * ((other - weight).norm() / noise.norm())).to(recipient.dtype)


def random_turn(U: Tensor, A: Tensor, generator: torch.Generator, H: Tensor | None = None) -> Tensor:
    """U [m, k] turned as A [m, k] is against it, but in random directions; all with orthonormal columns.

    Split A = U M + Y R, where M = U^T A and the columns of Y, at most min(k, m - k), are an orthonormal basis
    of what lies outside span(U). With H a Haar-random orthogonal matrix [k, k] (or the one given) and X a Haar-random
    orthonormal frame outside span(U), the result is U H M H^T + X R H^T. Why that is right:

    - its columns are orthonormal: M^T M + R^T R = A^T A = I, and U^T X = 0;
    - U^T times it is H M H^T, so that its principal angles to U are A's (the singular values of M), as are
      the eigenvalues of M and the distance ||A - U||_F;
    - for k = m nothing lies outside, and it is the rotation M conjugated by a random orthogonal matrix.
    """
    m, k = U.shape
    if k == 0:
        return U.clone()
    outside = min(k, m - k)
    M = U.T @ A
    _, sines, Z_t = torch.linalg.svd(A - U @ M, full_matrices=False)
    R = sines[:outside, None] * Z_t[:outside]
    H = _random_frame(U.new_zeros(k, 0), k, generator) if H is None else H
    X = _random_frame(U, outside, generator)
    return (U @ H @ M + X @ R) @ H.T


def restore_model(
    recipient_state: Mapping[str, Tensor],
    donor_state: Mapping[str, Tensor],
    matrices: Iterable[str],
    edit: Callable[[str, Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """A copy of recipient_state in which each of `matrices` is edit(name, recipient's, donor's).

    The other tensors are the recipient's own, not copies; neither state dict is changed.
    ValueError naming the matrix that is missing in either state dict or has another shape in the donor.
    """
    edited = dict(recipient_state)
    for name in matrices:
        for role, state in (("recipient", recipient_state), ("donor", donor_state)):
            if name not in state:
                raise ValueError(f"{name}: missing in the {role}")
        check_same_shape(recipient_state[name].shape, donor_state[name].shape, name)
        edited[name] = edit(name, recipient_state[name], donor_state[name])
    return edited


def _prepare(recipient: Tensor, donor: Tensor, spectra: Spectra | None) -> tuple[Tensor, Spectrum, Spectrum]:
    """The recipient in float64 and both spectra on its device, all checked to belong together."""
    weight, other = as_matrix(recipient, "recipient"), as_matrix(donor, "donor")
    check_same_shape(weight.shape, other.shape, "recipient and donor")
    own_spectrum, other_spectrum = spectra or (spectrum(weight), spectrum(other))
    pairs = (("recipient", weight, own_spectrum), ("donor", other, other_spectrum))
    for role, matrix, s in pairs if spectra else ():
        check_same_shape(matrix.shape, s.shape, f"{role} and its spectrum")
        norm, expected = float(s.values.norm()), float(matrix.norm())
        if abs(norm - expected) > 1e-9 * expected:
            raise ValueError(f"the spectrum given for the {role} is of another matrix: {norm} is not {expected}")
    return weight, *(s.to(weight.device) for s in (own_spectrum, other_spectrum))


def _chosen(rank: int, k_top: int | None, k_tail: int) -> Tensor:
    """The first k_top and last k_tail of `rank` indices; ValueError where there are not so many."""
    k_tail = check_count("k_tail", k_tail, 0, rank)
    k_top = check_count("k_top", (0 if k_tail else rank) if k_top is None else k_top, 0, rank)
    if k_top + k_tail > rank:
        raise ValueError(f"k_top + k_tail must be at most {rank}, got {k_top} + {k_tail}")
    indices = torch.arange(rank)
    return torch.cat([indices[:k_top], indices[rank - k_tail :]])


def _random_frame(U: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` orthonormal columns, Haar-random in the complement of the orthonormal columns of U [m, k].

    QR of a Gaussian matrix with R's diagonal made positive (Mezzadri 2007). The second pass removes what
    rounding left along U.
    """
    frame = torch.randn(U.shape[0], count, generator=generator, dtype=torch.float64).to(U.device)
    for _ in range(2):
        frame, r = torch.linalg.qr(frame - U @ (U.T @ frame))
        frame = frame * torch.where(r.diagonal() < 0, -1.0, 1.0).to(frame.dtype)
    return frame
