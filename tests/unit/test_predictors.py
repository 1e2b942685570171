"""What predicts forgetting, on made-up tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.analysis.predictors import (
    WHAT,
    better,
    forgetting,
    held_out_fit,
    quadratic_fit,
    rank_correlation,
    strength_table,
    strengths,
)
from oodlib.io import COLUMNS
from oodlib.tasks import get_task

SPLITS = get_task("general_points").splits
STEPS = (10, 50, 100)


def table(seeds=(0, 1, 2), recipes=6, noise=0.0):
    """OOD accuracy is 0.9 at step 10 and falls by the square of the KL; angles say nothing; ID accuracy rises."""
    rng, rows = np.random.default_rng(0), []
    for seed in seeds:
        for recipe in range(recipes):
            for i, step in enumerate(STEPS):
                kl = i * (0.1 + 0.1 * recipe)
                ood = 0.9 - kl**2 * 0.5 + noise * rng.normal() * (i > 0)
                numbers = {"kl_from_base": kl, "angle": rng.random(), "unchanged": 0.5}
                place = (f"recipe {recipe}", "sft", "sft", 0, step, seed)
                rows += [(place[0], "drift", *place[2:], "id", name, value, 100) for name, value in numbers.items()]
                rows += [(*place, split, "accuracy", ood, 100) for split in ("new_rule", "new_numbers", "ood")]
                rows += [(*place, "id", "accuracy", 0.5 + 0.1 * i, 100), (*place, "id", "loss", 1.0 - i, 100)]
            place = (f"recipe {recipe}", "rl", "rl", 50, 80, seed)
            rows += [(place[0], "drift", *place[2:], "id", "kl_from_base", 0.3, 100)]
            rows += [(*place, "ood", "accuracy", 0.85, 100)]
            rows += [(*place, split, "accuracy", 0.5, 100) for split in ("id", "new_rule", "new_numbers")]
    return pd.DataFrame(rows, columns=["condition", *COLUMNS])


def test_what_is_lost_is_counted_from_the_best_so_far():
    points = forgetting(table(), SPLITS)
    sft = points[points["arm"] == "sft"]
    np.testing.assert_allclose(sft["lost_ood"], 0.5 * sft["kl_from_base"] ** 2, atol=1e-12)
    assert (sft["lost_id"] == 0).all(), "ID accuracy only rises"
    assert sft["end"].equals(sft["step"] == 100) and sft["steps"].equals(sft["step"])
    arms = points[points["arm"] == "rl"]
    np.testing.assert_allclose(arms["lost_ood"], 0.05, atol=1e-12)
    np.testing.assert_allclose(arms["lost_id"], 0.1, atol=1e-12)
    assert (arms["steps"] == 130).all() and arms["end"].all()
    assert set(points["seed"]) == {0, 1, 2} and len(sft) == 3 * 6 * 3


def test_checkpoints_before_the_peak_and_arms_from_there_are_left_out():
    late = table()
    place = (late["step"] == 50) & (late["split"] == "ood") & (late["stage"] == "sft")
    late.loc[place, "value"] = 0.95
    points = forgetting(late, SPLITS)
    assert set(points.loc[points["arm"] == "sft", "step"]) == {50, 100}
    late.loc[place, "value"] = 0.0
    late.loc[(late["step"] == 100) & (late["split"] == "ood"), "value"] = 0.95
    assert set(forgetting(late, SPLITS)["arm"]) == {"sft"}, "from step 50 nothing had been lost"


def test_the_measure_that_forgetting_follows_is_found():
    found = strengths(forgetting(table(), SPLITS), SPLITS).set_index(["measure", "split", "over"])
    kl = found.loc[("kl_from_base", "ood", "ends")]
    assert kl["fit"].n == 3
    arms_too = found.loc[("kl_from_base", "ood", "all")]
    assert arms_too["rank"].value > 0.9 and arms_too["fit"].value > 0.9
    assert abs(found.loc[("angle", "ood", "all")]["rank"].value) < 0.6
    assert "unchanged" not in found.index.get_level_values("measure"), "the same everywhere"
    assert ("kl_from_base", "id", "ends") in found.index


def test_the_table_of_strengths_has_the_best_first_and_what_is_no_better_than_a_mean_last():
    table_ = strength_table(strengths(forgetting(table(recipes=12), SPLITS), SPLITS), SPLITS)
    assert table_.index[0] == WHAT["kl_from_base"] and table_["R², OOD"].iloc[0].startswith("1.00")
    assert table_.columns.tolist()[:1] + table_.columns.tolist()[-2:] == [
        "R², OOD",
        "R², OOD, left out",
        "rank correlation",
    ]
    assert table_.loc[WHAT["angle"], "R², OOD, left out"] == "below 0"


def test_one_measure_beats_another_within_a_seed():
    alone = table(recipes=30)
    points = forgetting(alone[alone["arm"] == "sft"], SPLITS)
    gap = better(points, "ood", "kl_from_base", "angle")
    assert gap.n == 3 and gap.low > 0
    assert better(points, "ood", "kl_from_base", "unchanged") is None
    with_arms = forgetting(alone, SPLITS)
    with_arms["same"] = with_arms["kl_from_base"].where(with_arms["arm"] == "sft")
    gap = better(with_arms, "ood", "kl_from_base", "same")
    assert gap.value == gap.low == 0, "over the points that have both"
    assert strengths(points[:0], SPLITS).empty


def test_fits_against_numpy_and_scipy():
    rng = np.random.default_rng(1)
    x = rng.random(30)
    assert quadratic_fit(x, 3 - x + 2 * x**2) == pytest.approx(1)
    y = rng.random(30)
    design = np.stack([np.ones(30), x, x**2], 1)
    rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    assert quadratic_fit(x, y) == pytest.approx(1 - rest @ rest / ((y - y.mean()) @ (y - y.mean())))
    assert rank_correlation(x, y) == pytest.approx(stats.pearsonr(x.argsort().argsort(), y.argsort().argsort())[0])
    without = [np.delete(np.arange(30), i) for i in range(30)]
    unseen = [y[i] - np.polyval(np.polyfit(x[rest], y[rest], 2), x[i]) for i, rest in enumerate(without)]
    means = [y[i] - y[rest].mean() for i, rest in enumerate(without)]
    assert held_out_fit(x, y) == pytest.approx(1 - np.square(unseen).sum() / np.square(means).sum())
    assert held_out_fit(x, y) < 0, "noise tells nothing of what a fit has not seen"
    assert np.isnan(held_out_fit(np.array([1.0, 2, 3, 3]), np.arange(4.0)))
    assert np.isnan(quadratic_fit(np.array([1.0, 2, 3, 3]), np.arange(4.0)))
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
