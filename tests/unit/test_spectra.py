"""oodlib.spectral: spectra and their comparison against closed forms and scipy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from oodlib.spectral import compare, principal_angles, spectrum, wedin_bound
from oodlib.spectral.svd import count_of

SHAPES = [(1, 1), (1, 5), (5, 1), (7, 4), (4, 7), (6, 6)]
ANGLES = [0.0, 1e-9, 1e-6, 1e-3, 0.5, math.pi / 4, 1.2, math.pi / 2 - 1e-9, math.pi / 2]
# scipy 1.17 masks by cosines in the wrong order, so that it may take a tiny angle from its cosine: the exact
# tests are those with closed forms.
SCIPY = 1e-7
few = settings(max_examples=25, deadline=None)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 10**6)


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def frame(m, k, seed=0):
    return np.linalg.qr(gaussian(m, k, seed=seed))[0]


def plane_rotation(m, i, j, theta):
    turn = np.eye(m)
    turn[[i, j], [i, j]] = math.cos(theta)
    turn[j, i], turn[i, j] = math.sin(theta), -math.sin(theta)
    return turn


def turned_frame(m, thetas, seed=0):
    """Two orthonormal frames [m, k] in general position, with the given principal angles (needs m >= 2k)."""
    k = len(thetas)
    basis, mix_a, mix_b = frame(m, m, seed), frame(k, k, seed + 1), frame(k, k, seed + 2)
    A, normal = basis[:, :k], basis[:, k : 2 * k]
    return A @ mix_a, (A * np.cos(thetas) + normal * np.sin(thetas)) @ mix_b


# spectrum


@few
@given(shapes, seeds)
def test_spectrum_factors_the_matrix(shape, seed):
    W = gaussian(*shape, seed=seed)
    s = spectrum(W)
    r = min(shape)
    assert s.whole.shape == shape and s.left.shape == (shape[0], r) and s.right.shape == (shape[1], r)
    assert {x.dtype for x in (s.left, s.values, s.right)} == {torch.float64}
    np.testing.assert_allclose((s.left * s.values) @ s.right.T, W, atol=1e-12)
    np.testing.assert_allclose(s.left.T @ s.left, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(s.right.T @ s.right, np.eye(r), atol=1e-12)
    np.testing.assert_allclose(s.values**2, np.sort(np.linalg.eigvalsh(W @ W.T))[::-1][:r], atol=1e-10)
    assert (np.diff(s.values) <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_spectrum_loses_nothing_of_narrow_floats(dtype):
    W = torch.tensor(gaussian(5, 3)).to(dtype).requires_grad_()
    s = spectrum(W)
    assert s.values.dtype == torch.float64 and not s.values.requires_grad
    np.testing.assert_allclose((s.left * s.values) @ s.right.T, W.detach().double(), atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", ">f4"])
def test_spectrum_takes_numpy(dtype):
    W = gaussian(4, 6).astype(dtype)[::-1]
    np.testing.assert_allclose(spectrum(W).values, np.linalg.svd(W.astype(np.float64), compute_uv=False), rtol=1e-12)


@pytest.mark.parametrize(
    ("W", "problem"),
    [
        (np.ones(3), "q_proj: expected a 2-D matrix, got 1-D"),
        (np.ones((2, 2, 2)), "q_proj: expected a 2-D matrix, got 3-D"),
        (np.ones((0, 3)), "q_proj: the matrix is empty"),
        (torch.ones(3, 0), "q_proj: the matrix is empty"),
        (np.array([[1.0, np.nan]]), "q_proj: 1 of 2 entries are NaN"),
        (torch.tensor([[1.0, -math.inf]], dtype=torch.bfloat16), "q_proj: 1 of 2 entries are inf"),
        (np.ones((2, 2), dtype=complex), "q_proj: expected real floating-point numbers"),
        (torch.ones(2, 2, dtype=torch.int64), "q_proj: expected real floating-point numbers"),
    ],
)
def test_spectrum_names_what_is_wrong(W, problem):
    with pytest.raises(ValueError, match=problem):
        spectrum(W, name="q_proj")


# principal_angles


@few
@given(st.integers(1, 10), st.integers(1, 10), seeds)
def test_principal_angles_agree_with_scipy(m, k, seed):
    A, B = frame(m, min(m, k), seed), frame(m, min(m, k), seed + 1)
    angles = principal_angles(A, torch.tensor(B))
    assert angles.dtype == np.float64 and (np.diff(angles) >= 0).all()
    np.testing.assert_allclose(angles, subspace_angles(A, B)[::-1], atol=SCIPY)
    np.testing.assert_allclose(angles, principal_angles(B, A), atol=1e-12)


@pytest.mark.parametrize("theta", ANGLES)
def test_principal_angle_of_one_plane_is_exact(theta):
    A, B = turned_frame(9, [0.0, 0.0, theta])
    np.testing.assert_allclose(principal_angles(A, B), [0.0, 0.0, theta], rtol=0, atol=3e-15)


def test_principal_angles_of_all_sizes_at_once():
    A, B = turned_frame(24, ANGLES)
    np.testing.assert_allclose(principal_angles(A, B), ANGLES, rtol=0, atol=1e-14)


@few
@given(st.lists(st.floats(0, math.pi / 2), min_size=1, max_size=5), seeds)
def test_principal_angles_to_1e_12(thetas, seed):
    A, B = turned_frame(12, thetas, seed)
    np.testing.assert_allclose(principal_angles(A, B), np.sort(thetas), rtol=0, atol=1e-12)


def test_principal_angles_do_not_see_the_basis_and_the_whole_space_is_not_turned():
    A = frame(6, 3)
    np.testing.assert_allclose(principal_angles(A, -A[:, [2, 0, 1]]), 0, atol=1e-15)
    np.testing.assert_allclose(principal_angles(frame(6, 6, 1), frame(6, 6, 2)), 0, atol=1e-14)


def test_principal_angles_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"A and B: shapes differ, \(4, 2\) and \(4, 3\)"):
        principal_angles(frame(4, 2), frame(4, 3))


# compare


@pytest.mark.parametrize("shape", SHAPES)
def test_compare_of_identical_matrices_is_zero(shape):
    W = gaussian(*shape)
    c = compare(W, W.copy())
    assert c.k == min(shape)
    np.testing.assert_array_equal(c.relative_change, np.zeros(min(shape)))
    np.testing.assert_allclose(np.r_[c.angles_left, c.angles_right], 0, atol=1e-14)


@pytest.mark.parametrize("theta", ANGLES)
@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (5, 8)])
def test_compare_sees_a_known_rotation_on_its_side_only(shape, theta):
    values = np.arange(5, 0, -1.0)
    U, V = frame(shape[0], shape[0], 1), frame(shape[1], shape[1], 2)
    W0 = (U[:, :5] * values) @ V[:, :5].T
    turned = U @ plane_rotation(shape[0], 1, 3, theta)  # a leading and a later left vector; k = 2 parts them
    c = compare(W0, (turned[:, :5] * values) @ V[:, :5].T, k=2)
    np.testing.assert_allclose(c.values0, c.values1, atol=1e-13)
    assert len(c.values0) == min(shape) and c.k == 2
    np.testing.assert_allclose(c.angles_left, [0, theta], rtol=0, atol=1e-13)
    np.testing.assert_allclose(c.angles_right, [0, 0], rtol=0, atol=1e-13)


@few
@given(shapes, seeds, st.data())
def test_compare_agrees_with_scipy(shape, seed, data):
    W0, W1 = gaussian(*shape, seed=seed), gaussian(*shape, seed=seed + 1)
    k = data.draw(st.integers(1, min(shape)))
    c = compare(W0, torch.tensor(W1), k=np.int64(k))
    (u0, s0, v0), (u1, s1, v1) = np.linalg.svd(W0), np.linalg.svd(W1)
    np.testing.assert_allclose(c.values0, s0, rtol=1e-10)
    np.testing.assert_allclose(c.values1, s1, rtol=1e-10)
    np.testing.assert_allclose(c.relative_change, np.abs(s1 - s0) / s0, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(c.angles_left, subspace_angles(u0[:, :k], u1[:, :k])[::-1], atol=SCIPY)
    np.testing.assert_allclose(c.angles_right, subspace_angles(v0[:k].T, v1[:k].T)[::-1], atol=SCIPY)


def test_compare_takes_a_spectrum_for_either_matrix():
    W0, W1 = gaussian(5, 3, seed=1), gaussian(5, 3, seed=2)
    expected, got = compare(W0, W1, k=2), [compare(spectrum(W0), W1, 2), compare(W0, spectrum(W1), 2)]
    for c in got:
        np.testing.assert_array_equal(c.angles_left, expected.angles_left)
        np.testing.assert_array_equal(c.values1, expected.values1)


def test_permuting_rows_permutes_left_vectors_only():
    W0 = np.diag([4.0, 3.0, 2.0, 1.0])
    c = compare(W0, W0[[0, 2, 1, 3]], k=2)  # the left space of the first two: e1, e2 becomes e1, e3
    np.testing.assert_allclose(c.angles_left, [0, math.pi / 2], atol=1e-15)
    np.testing.assert_allclose(c.angles_right, [0, 0], atol=1e-15)
    np.testing.assert_array_equal(c.relative_change, np.zeros(4))


def test_a_cluster_of_equal_values_keeps_its_subspace():
    U, V, mix = frame(8, 8, 1), frame(7, 7, 2), np.eye(7)
    mix[1:4, 1:4] = frame(3, 3, 3)  # another basis of the cluster on both sides: the same matrix
    values = np.array([5.0, 3.0, 3.0, 3.0, 1.0, 0.5, 0.1])
    c = compare((U[:, :7] * values) @ V.T, ((U[:, :7] @ mix) * values) @ (V @ mix).T, k=4)
    np.testing.assert_allclose(np.r_[c.angles_left, c.angles_right], 0, atol=1e-13)


def test_relative_change_by_hand_and_at_zero():
    c = compare(np.diag([4.0, 2.0, 0.0, 0.0]), np.diag([5.0, 1.0, 0.5, 0.0]))
    np.testing.assert_array_equal(c.relative_change, [0.25, 0.5, math.inf, 0.0])
    np.testing.assert_array_equal(compare(np.zeros((3, 2)), np.zeros((3, 2))).relative_change, [0.0, 0.0])
    with np.errstate(all="raise"):
        assert compare(np.zeros((1, 4)), np.ones((1, 4))).relative_change == math.inf


def test_rank_deficient_subspace_of_its_rank():
    A, B = turned_frame(9, [0.2, 1e-8])
    right = frame(6, 2)
    c = compare((A * [2, 1]) @ right.T, (B * [2, 1]) @ right.T, k=2)
    np.testing.assert_allclose(c.angles_left, [1e-8, 0.2], rtol=0, atol=1e-13)
    np.testing.assert_allclose(c.values0[2:], 0, atol=1e-14)


def test_compare_names_what_is_wrong():
    W = gaussian(4, 3)
    with pytest.raises(ValueError, match=r"v_proj: shapes differ, \(4, 3\) and \(3, 4\)"):
        compare(W, W.T, name="v_proj")
    with pytest.raises(ValueError, match=r"v_proj: shapes differ, \(4, 3\) and \(5, 3\)"):
        compare(spectrum(W), gaussian(5, 3), name="v_proj")
    for k in (0, -1, 4, 2.0, "2", True):
        with pytest.raises(ValueError, match=rf"v_proj: k must be an integer in 1..3, got {k!r}"):
            compare(W, W, k=k, name="v_proj")
    with pytest.raises(ValueError, match=r"v_proj \(first\): 12 of 12 entries are NaN"):
        compare(W * np.nan, W, name="v_proj")
    with pytest.raises(ValueError, match=r"v_proj \(second\): 12 of 12 entries are inf"):
        compare(W, torch.full((4, 3), math.inf), name="v_proj")


# the angle of each direction


@pytest.mark.parametrize("theta", ANGLES)
def test_direction_angles_say_which_vectors_turned(theta):
    U, V, values = frame(6, 6, 1), frame(4, 4, 2), np.array([4.0, 3.0, 2.0, 1.0])
    turned = U @ plane_rotation(6, 2, 5, theta)  # towards a direction outside, so that only the third turns
    W0, W1 = (U[:, :4] * values) @ V.T, (turned[:, :4] * values) @ V.T
    both = compare(W0, W1)
    left, right = both.left.directions(), both.right.directions()
    np.testing.assert_allclose(left, [0, 0, theta, 0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(right, np.zeros(4), rtol=0, atol=1e-14)
    assert left.max() <= math.pi / 2 and left.dtype == np.float64


@few
@given(shapes, seeds)
def test_direction_angles_agree_with_subspace_angles_of_each_column(shape, seed):
    s0, s1 = spectrum(gaussian(*shape, seed=seed)), spectrum(gaussian(*shape, seed=seed + 1))
    both = compare(s0, s1)
    for side, A, B in ((both.left, s0.left, s1.left), (both.right, s0.right, s1.right)):
        expected = [subspace_angles(a[:, None], b[:, None])[0] for a, b in zip(A.T.numpy(), B.T.numpy(), strict=True)]
        np.testing.assert_allclose(side.directions(), expected, atol=SCIPY)


def test_direction_angles_ignore_signs():
    W = gaussian(5, 3)
    both = compare(W, -W)
    np.testing.assert_allclose(np.r_[both.left.directions(), both.right.directions()], 0, atol=1e-15)


# large matrices, which go a shorter way (W W^T in float64), against the SVD in float64

LARGE = [(90, 90), (70, 300), (300, 70), (129, 128)]


def like(shape, values, seed=0):
    """A matrix of this shape with the given singular values."""
    r = min(shape)
    return (frame(shape[0], r, seed) * values) @ frame(shape[1], r, seed + 1).T


def by_svd(W0, W1, k):
    (u0, s0, v0), (u1, s1, v1) = (np.linalg.svd(W, full_matrices=False) for W in (W0, W1))
    angles = [principal_angles(a[:, :k], b[:, :k]) for a, b in ((u0, u1), (v0.T, v1.T))]
    return s0, s1, np.linalg.svd(W1 - W0, compute_uv=False), *angles


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0])
def test_large_pairs_agree_with_the_svd(shape, size):
    W0, noise = gaussian(*shape), gaussian(*shape, seed=1)
    W1 = W0 + size * noise
    ks = [1, 20, min(shape) // 2, min(shape)]
    c = compare(W0, W1)
    for k in ks:
        s0, s1, change, left, right = by_svd(W0, W1, k)
        np.testing.assert_allclose(c.values0, s0, atol=1e-10)
        np.testing.assert_allclose(c.values1, s1, atol=1e-10)
        np.testing.assert_allclose(c.change, change, rtol=0, atol=1e-11 * change[0] + 1e-15)
        np.testing.assert_allclose(c.left.angles(0, k), left, rtol=0, atol=3e-10)
        np.testing.assert_allclose(c.right.angles(0, k), right, rtol=0, atol=3e-8 * max(size, 1e-2))


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("smallest", [1e-2, 1e-5, 1e-9, 0.0])
def test_large_spectra_keep_their_weak_directions(shape, smallest):
    r = min(shape)
    values = np.r_[np.linspace(2, 1, r - 20), smallest * np.linspace(2, 1, 20)]
    W = like(shape, values)
    s = spectrum(W)
    np.testing.assert_allclose(s.values, np.linalg.svd(W, compute_uv=False), rtol=0, atol=1e-12)
    np.testing.assert_allclose((s.left * s.values) @ s.right.T, W, rtol=0, atol=1e-11)
    for vectors in (s.left, s.right):
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(r), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(200, 200), (150, 400), (400, 150)])
@pytest.mark.parametrize("theta", [1e-7, 1e-4, 0.3, 1.5])
def test_large_known_rotation_to_1e_7_rad(shape, theta):
    r = min(shape)
    values = np.r_[np.linspace(3, 2, 30), np.linspace(1, 0.1, r - 30)]
    U, V = frame(shape[0], shape[0], 1), frame(shape[1], shape[1], 2)
    turned = U @ plane_rotation(shape[0], 4, 60, theta)
    W0, W1 = (U[:, :r] * values) @ V[:, :r].T, (turned[:, :r] * values) @ V[:, :r].T
    c = compare(W0, W1, 30)
    expected = np.r_[np.zeros(29), theta]
    np.testing.assert_allclose(c.angles_left, expected, rtol=0, atol=2e-8)
    np.testing.assert_allclose(c.angles_right, 0, rtol=0, atol=2e-8)
    np.testing.assert_allclose(c.left.directions()[4], theta, rtol=0, atol=2e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_narrow_floats_are_taken_as_they_are(dtype):
    W0, W1 = (torch.tensor(gaussian(100, 120, seed=i)).to(dtype) for i in (0, 1))
    exact = compare(W0.double(), W1.double(), 10)
    np.testing.assert_array_equal(compare(W0, W1, 10).angles_left, exact.angles_left)


def test_a_spectrum_serves_many_comparisons():
    W0 = gaussian(100, 130)
    s0 = spectrum(W0)
    for W1 in (W0 + 1e-3 * gaussian(100, 130, seed=1), gaussian(100, 130, seed=2)):
        for found in (compare(s0, W1, 10), compare(s0, spectrum(W1), 10), compare(W0, spectrum(W1), 10)):
            np.testing.assert_allclose(found.angles_right, compare(W0, W1, 10).angles_right, atol=1e-9)
            np.testing.assert_allclose(found.values1, np.linalg.svd(W1, compute_uv=False), atol=1e-11)


# the tail and the single directions


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (12, 12), (80, 110), (110, 80)])
def test_trailing_angles_and_best_matches_agree_with_brute_force(shape):
    W0 = gaussian(*shape)
    W1 = W0 + 0.05 * gaussian(*shape, seed=1)
    c, r = compare(W0, W1, 2), min(shape)
    (u0, _, v0), (u1, _, v1) = (np.linalg.svd(W, full_matrices=False) for W in (W0, W1))
    for side, a, b in ((c.left, u0, u1), (c.right, v0.T, v1.T)):
        expected = subspace_angles(a[:, r - 4 :], b[:, r - 4 :])[::-1]
        np.testing.assert_allclose(side.angles(r - 4, r), expected, atol=SCIPY)
        np.testing.assert_allclose(side.best_match(), np.abs(a.T @ b).max(0), atol=1e-8)


# wedin_bound


@few
@given(st.tuples(st.integers(2, 9), st.integers(2, 9)), seeds, st.floats(1e-6, 0.3))
def test_no_angle_exceeds_wedin_s_bound(shape, seed, size):
    W0 = gaussian(*shape, seed=seed)
    W1 = W0 + size * gaussian(*shape, seed=seed + 1)
    for k in range(1, min(shape) + 1):
        c, bound = compare(W0, W1, k), wedin_bound(W0, W1, k)
        assert 0 < bound <= math.pi / 2
        assert max(c.angles_left.max(), c.angles_right.max()) <= bound + 1e-9


def test_wedin_s_bound_by_hand():
    W0, W1 = np.diag([5.0, 2.0, 1.0]), np.diag([5.0, 2.0, 1.5])
    assert wedin_bound(W0, W0, 1) == 0
    assert wedin_bound(W0, W1, 1) == pytest.approx(math.asin(0.5 / 3))  # ||D|| = 0.5, gap 5 - 2
    assert wedin_bound(W0, W1, 2) == pytest.approx(math.asin(0.5 / 1))  # the better of 2 - 1 and 2 - 1.5
    assert wedin_bound(np.eye(3), np.eye(3) + 0.1, 2) == math.pi / 2  # no gap: it says nothing
    turned = plane_rotation(2, 0, 1, 0.1) @ np.diag([1.0, 0.0])
    bound = wedin_bound(np.diag([1.0, 0.0]), turned, 1)
    assert 0.1 <= bound <= 0.101  # and it is nearly attained by a rotation


@pytest.mark.parametrize("shape", [(120, 120), (120, 260), (260, 120)])
@pytest.mark.parametrize("place", [1e-1, 1e-2, 1e-3, 3e-4, 1e-5])
def test_a_weak_close_pair_is_turned_as_the_svd_says(shape, place):
    """k parts two values that differ by 1e-4 of themselves, at `place` of the largest."""
    r = min(shape)
    values = np.r_[
        np.geomspace(1, 2 * place, 40), place * (1 + 1e-4), place, np.geomspace(place / 2, place / 9, r - 42)
    ]
    W0 = like(shape, values)
    W1 = W0 + 1e-6 * place * like(shape, np.linspace(2, 1, r), seed=7)
    c = compare(W0, W1, 41)
    *_, left, right = by_svd(W0, W1, 41)
    np.testing.assert_allclose(c.angles_left, left, rtol=0, atol=1e-7)
    np.testing.assert_allclose(c.angles_right, right, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(100, 100), (100, 250), (250, 100)])
def test_directions_that_did_not_turn_are_said_not_to(shape):
    """A change of rank 1 that touches only the first direction."""
    W0 = like(shape, np.geomspace(1, 1e-3, min(shape)))
    s = spectrum(W0)
    W1 = W0 + 3 * np.outer(s.left[:, 0], s.right[:, 0])
    both = compare(W0, W1, 1)
    for side in (both.left, both.right):
        np.testing.assert_allclose(side.directions(), 0, atol=1e-7)


@pytest.mark.parametrize("shape", [(100, 250), (250, 100)])
@pytest.mark.parametrize("change", [0.4, 1.5, 3.9, 12])  # of the largest singular value, in units of the smallest
@pytest.mark.parametrize("theta", [0, 1e-7, 1e-3])
def test_a_tiny_turn_is_seen_beside_a_large_change_of_a_value(shape, change, theta):
    """The last vector of the longer side turns by theta out of the span, while the first value grows by a lot."""
    r, n = min(shape), max(shape)
    values = np.r_[3.0, np.linspace(1.1, 1, r - 1)]
    U, V = frame(r, r, 1), frame(n, n, 2)
    turned = V[:, :r].copy()
    turned[:, -1] = math.cos(theta) * V[:, r - 1] + math.sin(theta) * V[:, -1]
    W0, W1 = (U * values) @ V[:, :r].T, (U * np.r_[3.0 + change, values[1:]]) @ turned.T
    c = compare(*((W0, W1) if shape[0] == r else (W0.T, W1.T)), r)
    found = c.angles_right if shape[0] == r else c.angles_left
    np.testing.assert_allclose(found, np.r_[np.zeros(r - 1), theta], rtol=0, atol=1e-7)


def test_an_unchanged_matrix_of_equal_values_is_not_turned():
    W = frame(100, 100)
    c = compare(W, W.copy(), 20)
    assert c.angles_left.max() < 1e-12 and c.left.best_match().min() > 1 - 1e-12
    assert wedin_bound(W, W, 20) == math.pi / 2 and wedin_bound(np.diag([2.0, 1.0]), np.diag([2.0, 1.0]), 1) == 0


@pytest.mark.parametrize("shape", [(100, 150), (300, 120), (200, 200)])
def test_a_change_of_low_rank_has_no_more_singular_values_than_that(shape):
    W0 = gaussian(*shape)
    change = gaussian(shape[0], 4, seed=1) @ gaussian(4, shape[1], seed=2)
    assert (compare(W0, W0 + change, 3).change > 0).sum() == 4


# counts of directions


@pytest.mark.parametrize(
    ("k", "rank", "count"), [("20%", 64, 13), (0.2, 64, 13), (1.0, 64, 64), (5, 64, 5), ("7", 64, 7), ("0.1%", 64, 1)]
)
def test_count_of(k, rank, count):
    assert count_of(k, rank) == count


@pytest.mark.parametrize("k", [0, -3, 0.0, 1.5, "0%", "120%", "many", "2.5", "", True])
def test_count_of_refuses(k):
    with pytest.raises(ValueError, match="allowed are a number of directions from 1, or a share"):
        count_of(k, 10)
