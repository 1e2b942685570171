"""Intervals against scipy and against their promise: 95 % of them cover the truth."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from oodlib.analysis.stats import Missing, Scores, bands, bootstrap, over_seeds, rank_correlation, rotation_and_accuracy
from oodlib.tasks import Split, Splits


def scores(right, keys=(("sft", "sft", 0, 0), ("sft", "sft", 0, 9))):
    columns = pd.MultiIndex.from_tuples(keys)
    return Scores(pd.DataFrame(np.asarray(right, float), columns=columns))


def test_over_seeds_is_the_t_interval():
    values = [0.1, 0.2, 0.25, 0.3, 0.1]
    interval = over_seeds(values)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.value, interval.low, interval.high) == pytest.approx((np.mean(values), low, high))
    assert np.isnan(over_seeds([0.3]).low)
    same = over_seeds([0.3, 0.3, 0.3])
    assert same.low == same.high == pytest.approx(0.3)


def test_the_bootstrap_over_problems_is_paired():
    """Two evaluations that are right on the same hands but for a few: the difference is known well."""
    rng = np.random.default_rng(0)
    first = rng.random(500) < 0.5
    second = first.copy()
    second[:20] = True
    both = scores(np.stack([first, second], 1))

    def gain(picks):
        resampled = both.resampled(picks)
        return resampled["sft", "sft", 0, 9] - resampled["sft", "sft", 0, 0]

    estimate = bootstrap(500, gain, "problems")
    assert estimate.low > 0 and estimate.high - estimate.low < 0.03
    unpaired = 1.96 * np.sqrt(2 * 0.25 / 500) * 2
    assert estimate.high - estimate.low < unpaired / 3


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        sample = rng.random(200) < 0.3
        interval = bootstrap(200, lambda picks, sample=sample: float(sample[picks].mean()), "problems")
        hits += interval.low <= 0.3 <= interval.high
    assert 50 <= hits <= 60


def test_a_set_of_one_has_no_interval():
    estimate = bootstrap([1, 50], lambda one, many: float(many.mean()), "problems")
    assert (estimate.value, estimate.n) == (24.5, 51) and np.isnan([estimate.low, estimate.high]).all()


def test_halves_never_share_a_problem_even_when_resampled():
    table = scores(np.arange(20).reshape(10, 2))
    picks = np.array([0, 0, 1, 5, 5, 8])
    even, odd = table.resampled(picks).halves()
    assert even.rows.tolist() == [0, 0, 8] and odd.rows.tolist() == [1, 5, 5]


def test_an_estimate_that_does_not_exist_is_nan_not_an_error():
    interval = bootstrap(5, lambda picks: float("nan"), "problems")
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def test_bands_are_over_seeds_or_else_wilson_s_over_problems():
    one = pd.DataFrame({"step": [1, 2], "seed": 1, "value": [0.25, 0.5], "n": 100})
    interval = bands(one)
    low, high = scipy_stats.binomtest(25, 100).proportion_ci(method="wilson")
    assert interval.loc[0, ["mean", "low", "high"]].tolist() == pytest.approx([0.25, low, high])
    assert bands(one, shares=False)["low"].isna().all()
    three = pd.DataFrame({"step": 1, "seed": [1, 2, 3], "value": [0.2, 0.3, 0.4], "n": 100})
    assert bands(three)["low"].iloc[0] == pytest.approx(over_seeds([0.2, 0.3, 0.4]).low)


def test_rotation_stands_beside_the_trained_and_the_headline_split_whatever_they_are_called():
    splits = Splits(Split("taught", "ID"), Split("far", "OOD"), others=(Split("near", "near"),))
    columns = ["stage", "arm", "from_step", "step", "seed", "split", "metric", "value", "n"]
    accuracies = {(0, "sft"): 0.1, (8, "sft"): 0.5, (4, "rl"): 0.7}
    rows = []
    for (step, arm), value in accuracies.items():
        place = (arm, arm, 8 if arm == "rl" else 0, step, 1)
        for split, more, n in (("taught", 0.0, 9), ("near", 0.05, 7), ("far", 0.1, 5)):
            rows.append((*place, split, "accuracy", value + more, n))
        rows.append((*place, "weights", "rotation", 0.02 * step, 28))
    table = pd.DataFrame(rows, columns=columns)
    sft = rotation_and_accuracy(table, "sft", splits).set_index("step")
    assert sft.loc[8, ["trained", "headline", "rotation"]].tolist() == pytest.approx([0.5, 0.6, 0.16])
    assert sft.loc[8, ["n_trained", "n_headline"]].tolist() == [9, 5]
    (rl,) = rotation_and_accuracy(table, "rl", splits).to_dict("records")
    assert (rl["from_step"], rl["trained"], rl["headline"]) == (8, pytest.approx(0.2), pytest.approx(0.2))


def test_several_sets_are_drawn_apart_and_an_evaluation_that_is_not_there_is_missing():
    rng = np.random.default_rng(2)
    one, other = rng.random(300) < 0.5, rng.random(200) < 0.3
    gap = bootstrap([300, 200], lambda i, j: float(one[i].mean() - other[j].mean()), "problems")
    error = np.sqrt(0.25 / 300 + 0.21 / 200)
    assert gap.n == 500 and gap.high - gap.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    with pytest.raises(Missing, match="no evaluation"):
        scores([[1, 0]])["rl", "rl", 0, 9]


def test_a_rank_correlation_is_spearman_s_within_a_seed_and_undefined_where_nothing_varies():
    table = pd.DataFrame({"seed": [1] * 4 + [2] * 4, "x": [1, 2, 3, 4, 1, 3, 2, 4], "y": [4, 3, 2, 1, 4, 3, 2, 1]})
    each = [scipy_stats.spearmanr(rows["x"], rows["y"]).statistic for _, rows in table.groupby("seed")]
    found = rank_correlation(table, "x", "y")
    assert found.value == pytest.approx(np.mean(each)) and found.low == -1, "cut at -1"
    flat = rank_correlation(table.assign(y=1), "x", "y")
    assert np.isnan(flat.value) and str(flat) == "undefined"
