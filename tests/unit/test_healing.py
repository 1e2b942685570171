"""Does RL heal more than annealing does: the analysis and its figures, on made-up tables of the sweep."""

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import SPLITS, made_up

from oodlib import plots
from oodlib.analysis import healing, questions
from oodlib.analysis.claims import PAPER
from oodlib.analysis.plan import Plan
from oodlib.io import COLUMNS
from oodlib.tasks import Splits

DOTS = ["condition", *COLUMNS[:-2]]


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
    assert starts["lost"].all() and starts.loc[("believer", 50), "fall"] < 0.4
    early = table.replace({"step": {50: 8}, "from_step": {50: 8}})
    early.loc[(early["stage"] == "sft") & (early["step"] == 8) & (early["metric"] == "accuracy"), "value"] = 0.65
    assert not healing.starts(early.drop_duplicates(DOTS), SPLITS).loc[("believer", 8), "lost"]
    assert starts["end"].tolist() == [start == 300 for _, start in starts.index]


def test_where_nothing_falls_nothing_can_be_healed(table):
    flat = table.assign(value=table["value"].where((table["stage"] != "sft") | (table["metric"] != "accuracy"), 0.5))
    assert healing.starts(flat, SPLITS)["fall"].isna().all()
    assert healing.comparisons(flat, SPLITS) == []
    assert "No answer yet" in questions.answer([], SPLITS)
    assert "nothing was measured" in questions.where_nothing_anneals(flat, SPLITS, ["cosine"])


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
    assert "one seed" in questions.where_nothing_anneals(one, SPLITS, ["cosine"])
    assert plots.sweep.against([c]) and plots.sweep.by_start(one, SPLITS, ["sft_continued"])


def test_the_answer_names_what_rl_beats_and_what_beats_it(found):
    text = questions.answer(found, SPLITS)
    assert "RL **gains**: +" in text and "7 starts, 6 seeds" in text and "No: it ends below 1 of 4 baselines" in text
    assert "ends below SFT continued (-" in text and "PPO" not in text, "a variant need not be beaten"


def test_rl_of_its_own_heals_where_nothing_anneals(table):
    conditions = Plan().annealed()
    assert conditions == ["cosine"]
    assert "does not gain" in questions.where_nothing_anneals(table, SPLITS, conditions)
    own = made_up(gains={"rl": (0.03, 0.7)})
    assert "**gains** there" in questions.where_nothing_anneals(own, SPLITS, conditions)
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
    text = questions.negatives_or_freshness(made_up(gains=gains), SPLITS)
    assert shown in text.partition("Shown to heal:")[2] and "Wrong answers alone" in text


def test_what_comes_back_from_the_end_of_the_split_with_new_numbers(table):
    assert "RL (+" in questions.numbers_from_the_end(table, SPLITS)
    dead = made_up(gains=dict.fromkeys(["rl", "sft_continued", *healing.arms_of(table)], (-0.005, 0.0)), noise=0.004)
    assert "above 0: none" in questions.numbers_from_the_end(dead, SPLITS)
    ends = questions.from_the_end(table, SPLITS)
    assert set(ends["split"]) == set(SPLITS.names) and ends["arm"].iloc[0] == "rl"


def test_the_parts_of_an_answer_that_return(table):
    parts = questions.what_returns(table, SPLITS, ["rl"]).set_index("part")["gain"]
    assert len(parts) == 6 and parts["clinging to the old rule"].high < 0 < parts["its value is right"].low
    assert "Shown to rise: the new rule is read" in questions.rule_writing_or_arithmetic(table, SPLITS)


def test_a_task_with_two_splits_and_no_measures_of_its_own():
    two = Splits(SPLITS.trained, SPLITS.headline)
    table = made_up(seeds=[30, 31, 32]).query("split in ['id', 'ood', 'train'] and metric != 'numbers_read'")
    table = table[table["metric"] != "old_rule"]
    found = healing.comparisons(table, two)
    assert {c.split.name for c in found} == {"ood"} and "RL" in questions.answer(found, two)
    assert questions.what_returns(table, two, ["rl"])["part"].tolist() == ["its value is right"]
    assert "no split that changes the numbers" in questions.numbers_from_the_end(table, two)


def test_arms_that_were_not_run_are_left_out():
    table = made_up(seeds=[30, 31], without=("sft_continued", "rejection_sampling", "negatives"))
    assert "sft_continued" not in healing.arms_of(table)
    assert "were not both measured" in questions.negatives_or_freshness(table, SPLITS)
    assert all(c.baseline != "negatives" for c in healing.comparisons(table, SPLITS))


def test_rl_learns_if_its_reward_rises(table):
    rises = questions.learnt(table)
    assert rises.index[0] == "believer, from 50" and rises["rise"].str.startswith("+1.").all()


def test_the_paper_s_gains_are_less_the_checkpoint_from_which_rl_starts():
    gains, llama = questions.paper_gains(), PAPER["stages"]["llama-3.2-11b"]["ood"]
    (best,) = [name for name in gains if "the best of" in name]
    assert "from step 1100" in best and gains[best] == pytest.approx(llama["rl"] - llama["sft_end"])


def test_figures_can_be_read(table, found, smallest_text, texts_on_texts):
    plots.style()
    counted = [c for c in found if healing.counts(c.baseline)]
    arms = list(dict.fromkeys(c.baseline for c in counted))
    drawn = [
        plots.sweep.against(counted),
        plots.sweep.by_start(table, SPLITS, arms),
        plots.sweep.gains(questions.from_the_end(table, SPLITS), SPLITS, "From the end"),
        plots.sweep.what_returns(questions.what_returns(table, SPLITS)),
    ]
    for figure in drawn:
        assert smallest_text(figure) >= 8 and texts_on_texts(figure) == []
    assert len(drawn[0].axes) == 3 * len(arms)


def test_tables_read_well(table, found):
    row = healing.brief(found).iloc[0]
    assert row["RL against"] == "SFT continued" and row["verdict"] == "SFT continued heals more"
    contrasts = questions.contrast_table(table, SPLITS)
    assert len(contrasts) == len(questions.CONTRASTS) and contrasts["seeds"].eq(6).all()
    assert isinstance(healing.wide(table, "ood"), pd.DataFrame)
