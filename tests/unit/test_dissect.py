"""oodlib.spectral.metrics against brute force on small matrices."""

import math

import numpy as np
import pytest
import torch

from oodlib.spectral import compare
from oodlib.spectral.metrics import METRICS, measure, noise_null


def gaussian(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def numbers(W0, W1, ks, seed=None):
    rows, _ = measure(compare(W0, W1), ks, seed)
    return {(k, metric): value for k, metric, value in rows}


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (12, 12), (80, 110)])
def test_every_metric_is_there_and_is_documented(shape):
    W0 = gaussian(*shape)
    rows, arrays = measure(compare(W0, W0 + 0.1 * gaussian(*shape, seed=1)), [2, 5], seed=3)
    whole = {m for k, m, _ in rows if k is None}
    at_k = {m for k, m, _ in rows if k == 5}
    documented = {m.replace("SIDE", side) for m in METRICS for side in ("left", "right")}
    assert whole | at_k == documented and not whole & at_k
    assert at_k == {m for k, m, _ in rows if k == 2}
    assert all(math.isfinite(value) for _, _, value in rows)
    assert {len(a) for n, a in arrays.items() if n.endswith("_5")} == {5}
    without, arrays = measure(compare(W0, W0), [2])
    assert not any(m.startswith("null") for _, m, _ in without) and not any(n.startswith("null") for n in arrays)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (12, 12), (90, 130), (130, 90)])
def test_shares_of_the_change_by_brute_force(shape):
    W0 = gaussian(*shape)
    D = 0.05 * gaussian(*shape, seed=1)
    u, _, v = np.linalg.svd(W0, full_matrices=False)
    inside = u.T @ D @ v.T
    diagonal, whole = (np.diag(inside) ** 2).sum(), (inside**2).sum()
    found = numbers(W0, W0 + D, [2])
    total = (D**2).sum()
    assert found[None, "scaling_share"] == pytest.approx(diagonal / total, abs=1e-9)
    assert found[None, "rotation_share"] == pytest.approx((whole - diagonal) / total, abs=1e-9)
    assert found[None, "outside_share"] == pytest.approx(1 - whole / total, abs=1e-9)
    assert found[None, "change_norm"] == pytest.approx(math.sqrt(total))
    assert found[None, "change_spectral_norm"] == pytest.approx(np.linalg.norm(D, 2))


def test_scaling_and_turning_are_told_apart():
    u, s, v = np.linalg.svd(gaussian(10, 10))
    scaled = numbers((u * s) @ v, (u * (1.1 * s)) @ v, [3])
    assert scaled[None, "scaling_share"] == pytest.approx(1) and scaled[3, "angle_left_max"] < 1e-10
    assert scaled[None, "value_change_mean"] == pytest.approx(0.1)
    theta = 1e-3
    turn = np.eye(10)
    turn[[0, 5], [0, 5]], turn[0, 5], turn[5, 0] = math.cos(theta), -math.sin(theta), math.sin(theta)
    turned = numbers((u * s) @ v, (u @ turn * s) @ v, [3])
    assert turned[None, "scaling_share"] < 1e-5 and turned[3, "angle_left_max"] == pytest.approx(theta, abs=1e-10)
    assert turned[None, "value_change_max"] < 1e-12


def test_distances_between_subspaces_by_forming_the_projectors():
    W0, W1 = gaussian(12, 20), gaussian(12, 20, seed=1)
    found = numbers(W0, W1, [4])
    (u0, _, v0), (u1, _, v1) = (np.linalg.svd(W, full_matrices=False) for W in (W0, W1))
    for side, a, b in (("left", u0, u1), ("right", v0.T, v1.T)):
        a, b = a[:, :4], b[:, :4]
        distance = np.linalg.norm(a @ a.T - b @ b.T)
        assert found[4, f"chordal_{side}"] == pytest.approx(distance / math.sqrt(2))


def test_an_intruder_is_seen():
    W0 = gaussian(100, 120)
    u, v = (x / np.linalg.norm(x) for x in (gaussian(100, seed=5), gaussian(120, seed=6)))
    W1 = W0 + 100 * np.outer(u, v)
    found = numbers(W0, W1, [5])
    assert found[5, "intruders_left"] == 1 == found[5, "intruders_right"]
    assert numbers(W0, W0 + 0.01 * gaussian(100, 120, seed=7), [5])[5, "intruders_left"] == 0


def test_the_null_is_the_matrix_with_noise_of_the_change_s_norm():
    W0 = gaussian(60, 80)
    both = compare(W0, W0 + 0.1 * gaussian(60, 80, seed=1))
    null = noise_null(both, 5)
    assert np.linalg.norm(null.change) == pytest.approx(np.linalg.norm(both.change))
    assert np.array_equal(null.values0, both.values0) and not np.array_equal(null.values1, both.values1)
    assert null.left.angles(0, 10).mean() == pytest.approx(
        both.left.angles(0, 10).mean(), rel=0.5
    )  # this change is noise
    np.testing.assert_array_equal(noise_null(both, 5).left.angles(0, 10), null.left.angles(0, 10))
    assert noise_null(both, 6).left.angles(0, 10).mean() != null.left.angles(0, 10).mean()


def test_nothing_changed_and_nothing_there():
    for W in (gaussian(80, 90), np.zeros((80, 90)), np.zeros((3, 5)), gaussian(1, 7)):
        found = numbers(W, torch.tensor(W), [1], seed=0)
        assert found[None, "change_norm"] == 0 == found[None, "scaling_share"]
        if W.any():
            assert found[1, "angle_right_max"] < 1e-7 and found[None, "value_change_max"] < 1e-12
