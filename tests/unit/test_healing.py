"""Does RL heal more than annealing does: the analysis and its figures, on made-up tables of the sweep."""

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import SPLITS, made_up

from oodlib import plots
from oodlib.analysis import healing
from oodlib.analysis.claims import PAPER
from oodlib.analysis.sweep import Plan
from oodlib.tasks import Splits


@pytest.fixture(scope="module")
def table():
    return made_up()


@pytest.fixture(scope="module")
def found(table):
    return healing.comparisons(table, SPLITS)


def only(found, baseline, split="ood"):
    (comparison,) = [c for c in found if (c.baseline, c.split.name) == (baseline, split)]
    return comparison


def test_starts_are_placed_by_the_share_of_the_fall(table):
    starts = healing.starts(table, SPLITS)
    assert starts.loc[("believer", 100), "fall"] == pytest.approx(0.55, abs=0.05)
    assert not starts.loc[("believer", 8), "lost"] and starts.loc[("believer", 50), "lost"]
    assert starts["end"].tolist() == [start == 300 for _, start in starts.index]


def test_where_nothing_falls_nothing_can_be_healed(table):
    flat = table.assign(value=table["value"].where((table["stage"] != "sft") | (table["metric"] != "accuracy"), 0.5))
    assert healing.starts(flat, SPLITS)["fall"].isna().all()
    assert healing.comparisons(flat, SPLITS) == []
    assert "No answer yet" in healing.answer([], SPLITS)
    assert "nothing was measured" in healing.where_nothing_anneals(flat, SPLITS, ["cosine"])


def test_verdicts_and_differences_follow_the_made_up_effects(found):
    assert only(found, "sft_continued").verdict == "the baseline heals more"
    assert only(found, "rejection_sampling").verdict == "RL heals more"
    assert only(found, "ppo").verdict == "level"
    c = only(found, "rejection_sampling")
    dots = c.dots[c.dots["lost"]]
    by_seed = (dots["rl"] - dots["baseline"]).groupby(dots["seed"]).mean()
    assert c.difference.value == pytest.approx(by_seed.mean()) and c.difference.n == 6
    assert {"ood", "new_rule", "new_numbers"} == {c.split.name for c in found}, "every corner but the trained"


def test_the_major_axis_finds_a_line_and_treats_both_gains_alike():
    x = np.linspace(0, 1, 50)
    assert healing.major_axis(np.column_stack([x, 0.6 * x + 0.1])) == pytest.approx((0.6, 0.1))
    noisy = np.random.default_rng(0).normal(size=(400, 2)) * 0.3 + np.linspace(-2, 2, 400)[:, None]
    slope, _ = healing.major_axis(noisy)
    assert slope == pytest.approx(1, abs=0.05) and healing.major_axis(noisy[:, ::-1])[0] == pytest.approx(1 / slope)
    assert np.isnan(healing.major_axis(np.zeros((3, 2)))[0])


def test_slope_and_intercept_have_intervals_over_seeds(found):
    c = only(found, "sft_continued")
    assert c.slope.low < 0.7 / 1.2 < c.slope.high and c.slope.n == 6
    assert abs(c.intercept.value) < 0.01


def test_a_seed_that_lacks_a_start_does_not_count_and_its_dots_are_shown(table):
    lacking = (table["seed"] == 35) & (table["condition"] == "reader") & (table["stage"] == "rl")
    c = healing.compare(table[~lacking], SPLITS, "sft_continued", SPLITS.headline)
    assert c.difference.n == 5 and set(c.dots["seed"]) == set(range(30, 36))


def test_one_seed_has_numbers_without_intervals_and_no_verdict():
    one = made_up(seeds=[30])
    c = only(healing.comparisons(one, SPLITS), "sft_continued")
    assert c.verdict == "undecided" and np.isnan([c.difference.low, c.slope.low]).all()
    assert "one seed" in healing.where_nothing_anneals(one, SPLITS, ["cosine"])
    assert plots.sweep.against([c]) and plots.sweep.by_start(one, SPLITS, ["sft_continued"])


def test_the_answer_names_what_rl_beats_and_what_beats_it(found):
    text = healing.answer(found, SPLITS)
    assert "RL **heals**: +" in text and "11 starts, 6 seeds" in text and "More than 3 of 4 baselines" in text
    assert "ends below SFT continued (-" in text and "PPO" not in text, "a variant need not be beaten"


def test_rl_of_its_own_heals_where_nothing_anneals(table):
    conditions = Plan().annealed()
    assert conditions == ["cosine"]
    assert "does not heal" in healing.where_nothing_anneals(table, SPLITS, conditions)
    own = made_up(gains={"rl": (0.03, 0.7)})
    assert "**heals** there" in healing.where_nothing_anneals(own, SPLITS, conditions)
    assert only(healing.comparisons(own, SPLITS), "sft_continued").intercept.low > 0


@pytest.mark.parametrize(
    ("gains", "shown"),
    [
        ({}, "the freshness of the samples"),
        ({"rejection_sampling": (0.0, 0.5), "rl": (0.03, 0.7)}, "what fresh samples of right answers lack"),
        ({"rejection_sampling": (0.0, 0.5), "rl": (0.0, 0.5)}, "neither by itself"),
    ],
)
def test_the_negatives_and_the_freshness_are_told_apart(gains, shown):
    text = healing.negatives_or_freshness(made_up(gains=gains), SPLITS)
    assert shown in text.partition("Shown to heal:")[2] and "Wrong answers alone" in text


def test_what_comes_back_from_the_end_of_the_split_with_new_numbers(table):
    assert "RL (+" in healing.numbers_from_the_end(table, SPLITS)
    dead = made_up(gains=dict.fromkeys(["rl", "sft_continued", *healing.arms_of(table)], (-0.005, 0.0)), noise=0.004)
    assert "above 0: none" in healing.numbers_from_the_end(dead, SPLITS)
    ends = healing.from_the_end(table, SPLITS)
    assert set(ends["split"]) == set(SPLITS.names) and ends["arm"].iloc[0] == "rl"


def test_the_parts_of_an_answer_that_return(table):
    parts = healing.what_returns(table, SPLITS, ["rl"]).set_index("part")["gain"]
    assert len(parts) == 5 and parts["clinging to the old rule"].high < 0 < parts["the arithmetic with them"].low
    assert "Shown to rise: the rule is read" in healing.rule_writing_or_arithmetic(table, SPLITS)


def test_a_task_with_two_splits_and_no_measures_of_its_own():
    two = Splits(SPLITS.trained, SPLITS.headline)
    table = made_up(seeds=[30, 31, 32]).query("split in ['id', 'ood', 'train'] and metric != 'numbers_read'")
    table = table[table["metric"] != "old_rule"]
    found = healing.comparisons(table, two)
    assert {c.split.name for c in found} == {"ood"} and "RL" in healing.answer(found, two)
    assert healing.what_returns(table, two, ["rl"])["part"].tolist() == ["the arithmetic with them"]
    assert "no split that changes the numbers" in healing.numbers_from_the_end(table, two)


def test_arms_that_were_not_run_are_left_out():
    table = made_up(seeds=[30, 31], without=("sft_continued", "rejection_sampling", "negatives"))
    assert "sft_continued" not in healing.arms_of(table)
    assert "were not both measured" in healing.negatives_or_freshness(table, SPLITS)
    assert all(c.baseline != "negatives" for c in healing.comparisons(table, SPLITS))


def test_rl_learns_if_its_reward_rises(table):
    rises = healing.learnt(table)
    assert rises.index[0] == "believer, from 8" and rises["rise"].str.startswith("+1.").all()


def test_the_paper_s_gains_are_less_the_checkpoint_from_which_rl_starts():
    gains, llama = healing.paper_gains(), PAPER["stages"]["llama-3.2-11b"]["ood"]
    (best,) = [name for name in gains if "the best of" in name]
    assert "from step 1100" in best and gains[best] == pytest.approx(llama["rl"] - llama["sft_end"])


def test_figures_can_be_read(table, found, smallest_text, texts_on_texts):
    plots.style()
    counted = [c for c in found if healing.counts(c.baseline)]
    arms = list(dict.fromkeys(c.baseline for c in counted))
    drawn = [
        plots.sweep.against(counted),
        plots.sweep.by_start(table, SPLITS, arms),
        plots.sweep.gains(healing.from_the_end(table, SPLITS), SPLITS, "From the end"),
        plots.sweep.what_returns(healing.what_returns(table, SPLITS)),
    ]
    for figure in drawn:
        assert smallest_text(figure) >= 8 and texts_on_texts(figure) == []
    assert len(drawn[0].axes) == 3 * len(arms)


def test_tables_read_well(table, found):
    row = healing.brief(found).iloc[0]
    assert row["RL against"] == "SFT continued" and row["verdict"] == "SFT continued heals more"
    contrasts = healing.contrast_table(table, SPLITS)
    assert len(contrasts) == len(healing.CONTRASTS) and contrasts["seeds"].eq(6).all()
    assert isinstance(healing.wide(table, "ood"), pd.DataFrame)
