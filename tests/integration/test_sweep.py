"""The sweep: its plan is valid, cells are done once, and made-up data get the verdicts that they ask for."""

import re

import numpy as np
import pandas as pd
import pytest

from oodlib.analysis.claims import PAPER
from oodlib.analysis.healing import answer, brief, effects, paper_gains, wide
from oodlib.analysis.mitigations import at_peak, best_mitigations, best_start, compare_mitigations, mitigations
from oodlib.analysis.sweep import Plan, Sweep, spread, summary
from oodlib.io import COLUMNS
from oodlib.registry import BASELINES
from oodlib.run import STAGES, Run

TINY = """
like: smoke
common:
  eval: {every: 60, attempts: 2}
  sft: {steps: 4, checkpoints: [0, 2, 4]}
  rl: {starts: [4], steps: 2, baselines: [sft_continued]}
conditions:
  plain: {why: the start}
  one-try: {why: fewer attempts, changes: {rl: {attempts: 1}}}
phases:
  explore: {seeds: [0, 1], conditions: [plain, one-try]}
"""


def test_every_condition_of_the_plan_is_a_valid_configuration_and_says_why():
    plan = Plan()
    for name, condition in plan.conditions.items():
        assert condition["why"] and plan.config(name, 0).n_seeds == 1
    explored, confirmed = (set(plan.seeds(phase)) for phase in ("explore", "confirm"))
    assert explored <= set(range(5)) and confirmed <= set(range(10, 20)), "no seed both explores and confirms"


def test_an_unknown_phase_or_condition_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'later'.*explore"):
        Sweep().left("later")
    with pytest.raises(ValueError, match=r"'cold'.*one-try"):
        Plan().config("cold", 0)
    (tmp_path / "plan.yaml").write_text(TINY.replace("conditions: [plain,", "conditions: [plane,"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"'plane'.*plain"):
        Plan(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text("like: smoke", encoding="utf-8")
    with pytest.raises(ValueError, match="no plan of a sweep"):
        Plan(tmp_path / "plan.yaml")


def test_the_plan_as_a_table_says_what_each_condition_changes():
    table = Plan().table("confirm", "mitigations")
    assert table.index.is_unique and "lora" in table.index
    assert table.loc["cosine", "changes"] == "sft: schedule cosine; rl: starts [300]"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "plan.yaml").write_text(TINY, encoding="utf-8")
    sweep = Sweep(Plan(folder / "plan.yaml"), folder / "out")
    steps = list(sweep.run("explore", at_once=2))
    return sweep, steps


def test_cells_run_in_groups_until_none_is_left(small):
    sweep, steps = small
    assert [[c.name for c in cells] for cells, _ in steps] == [["plain/0", "plain/1"], ["one-try/0", "one-try/1"]]
    assert [left for _, left in steps] == [2, 0]
    table = sweep.table()
    assert list(table.columns) == ["condition", *COLUMNS]
    assert set(zip(table["condition"], table["seed"], strict=True)) == {
        (r, s) for r in sweep.plan.conditions for s in (0, 1)
    }
    assert {"accuracy", "accuracy@1", "accuracy@2", "advantage_skewness", "mean_angle_left"} <= set(table["metric"])
    assert not table.duplicated(["condition", *COLUMNS[:-2]]).any()


def test_a_finished_sweep_runs_nothing_even_where_its_work_is_gone(small):
    sweep, _ = small
    again = Sweep(sweep.plan, sweep.folder)
    assert not again.left("explore") and list(again.run("explore")) == []


def test_a_changed_plan_makes_its_cells_new(small, tmp_path):
    sweep, _ = small
    changed = TINY.replace("attempts: 1}}", "attempts: 1, learning_rate: 2.0e-5}}")
    (tmp_path / "plan.yaml").write_text(changed, encoding="utf-8")
    left = Sweep(Plan(tmp_path / "plan.yaml"), sweep.folder).left("explore")
    assert {cell.condition for cell in left} == {"one-try"}


def test_a_method_that_measures_otherwise_makes_cells_new(small, monkeypatch):
    sweep, _ = small
    monkeypatch.setitem(STAGES, "rl", STAGES["rl"].__class__(("sft",), 99))
    assert len(sweep.left("explore")) == 4


def test_a_sweep_says_what_is_measured_and_reads_a_phase_in_the_plan_s_order(small, capsys):
    sweep, _ = small
    again = Sweep.open(sweep.folder.parent / "plan.yaml", sweep.folder)
    assert "explore: 4 conditions and seeds are measured" in capsys.readouterr().out
    assert again.rows("explore")["condition"].unique().tolist() == ["plain", "one-try"]
    with pytest.raises(RuntimeError, match="no measurements yet"):
        Sweep.open(None, sweep.folder / "empty")


def test_conditions_share_what_does_not_differ(small):
    sweep, _ = small
    parts = [p.name for p in (sweep.folder / "work" / "parts").rglob("*-from-4-*") if p.is_dir()]
    assert sum(p.startswith("sft_continued") for p in parts) == 2, "one a seed, not one a condition"
    assert sum(p.startswith("rl-from") for p in parts) == 4


def test_how_advantages_are_spread():
    played = pd.DataFrame(
        {
            "update": 0,
            "group": [0, 0, 1, 1],
            "reward": [5.0, 5, -1, 5],
            "outcome": ["correct", "correct", "wrong_value", "correct"],
            "advantage": [0.0, 0, -1, 1],
        }
    )
    numbers = {name: value for name, value, _ in spread(played)}
    assert numbers["groups_without_contrast"] == 0.5 and numbers["solved"] == 0.75
    assert numbers["advantage_skewness"] == 0 and numbers["centred_q50"] == 0 and numbers["centred_q95"] > 2


# ---- the analysis, on made-up data -------------------------------------------------------------------------


def made_up(rl, baseline, start=0.1, peak=0.4, noise=0.01, seeds=range(10, 20), bought=0.0):
    """Seeds whose arms share a part of their luck; the baseline `sft_continued` pays `bought` of ID accuracy."""
    rng, rows = np.random.default_rng(1), []

    def add(stage, arm, start_step, step, seed, split, value):
        for metric in ("accuracy", "accuracy@1"):
            rows.append(("made-up", stage, arm, start_step, step, seed, split, metric, value, 100))

    for seed in seeds:
        for split in ("ood", "id"):
            own = rng.normal(0, 0.05)  # what the arms of a seed have in common
            add("sft", "sft", 0, 8, seed, split, peak)
            add("sft", "sft", 0, 300, seed, split, start + own)
            paid = bought if split == "id" else 0.0
            same = {"rl": rl if split == "ood" else 0.5, "sft_continued": baseline if split == "ood" else 0.5 - paid}
            same["averaging"] = baseline - 0.05 if split == "ood" else 0.5
            for arm, value in same.items():
                add("rl", arm, 300, 80, seed, split, value + own + rng.normal(0, noise))
    return pd.DataFrame(rows, columns=["condition", *COLUMNS])


@pytest.mark.parametrize(
    ("rl", "baseline", "start", "noise", "verdict"),
    [
        (0.3, 0.2, 0.1, 0.01, "RL heals more"),
        (0.2, 0.3, 0.1, 0.01, "a baseline heals more"),
        (0.1, 0.05, 0.2, 0.01, "RL does not heal"),
        (0.2, 0.201, 0.1, 0.005, "level with a baseline"),
        (0.2, 0.19, 0.1, 0.06, "undecided"),
        (0.5, 0.2, 0.45, 0.01, "nothing lost"),
    ],
)
def test_verdicts_follow_the_numbers(rl, baseline, start, noise, verdict):
    (result,) = effects(made_up(rl, baseline, start, noise=noise))
    assert result.verdict == verdict
    assert result.effect.value == pytest.approx(rl - baseline, abs=0.05) and result.effect.n == 10
    assert result.best == "sft_continued" and set(result.against) == {"sft_continued", "averaging"}


def test_a_baseline_that_pays_with_id_accuracy_does_not_count():
    (result,) = effects(made_up(0.2, 0.3, bought=0.1))
    assert result.behind == ("sft_continued",) and result.best == "averaging"
    assert result.against["sft_continued"].high < 0, "it is still shown"
    assert result.verdict == "a baseline heals more", "averaging is above RL, and paid nothing"
    (result,) = effects(made_up(0.27, 0.3, bought=0.1))
    assert result.verdict == "RL heals more"


@pytest.mark.parametrize(("rise", "verdict"), [(1.0, "RL heals more"), (0.0, "RL did not learn")])
def test_where_the_return_does_not_rise_rl_was_not_put_to_the_test(rise, verdict):
    table, rng = made_up(0.3, 0.2), np.random.default_rng(2)
    returns = [
        ("made-up", "rl", "rl", 300, 80, seed, "train", f"reward_{end}", value + rng.normal(0, 0.1), 8)
        for seed in table["seed"].unique()
        for end, value in (("first", 1.0), ("last", 1.0 + rise))
    ]
    table = pd.concat([table, pd.DataFrame(returns, columns=table.columns)], ignore_index=True)
    (result,) = effects(table)
    assert result.verdict == verdict and result.learnt.value == pytest.approx(rise, abs=0.1)
    assert ("nothing to heal" in answer([result])) == (rise == 0)


def test_the_answer_counts_the_verdicts_and_computes_its_means():
    parts = [made_up(0.3, 0.2).assign(condition="up"), made_up(0.2, 0.3, bought=0.1).assign(condition="down")]
    results = effects(pd.concat(parts, ignore_index=True))
    text = answer(results)
    assert "Of 2 starts" in text and "**1** RL heals more, **1** a baseline heals more" in text
    gains, gaps = ([getattr(e, name).value for e in results] for name in ("gain", "effect"))
    assert f"comparison) {100 * np.mean(gains):+.1f}" in text and f"best baseline {100 * np.mean(gaps):+.1f}" in text
    assert "rejection" not in text, "it was not run"
    assert brief(results)["not counted"].tolist() == ["", "SFT continued"]
    assert "nothing to heal" in answer(effects(made_up(0.5, 0.2, 0.45)))


def test_the_paper_s_gains_are_less_the_checkpoint_from_which_rl_starts():
    gains, llama = paper_gains(), PAPER["stages"]["llama-3.2-11b"]["ood"]
    (best,) = [name for name in gains if "the best of" in name]
    assert "from step 1100" in best and gains[best] == pytest.approx(llama["rl"] - llama["sft_end"])


def test_intervals_are_paired_within_a_seed():
    """What the arms of a seed share (0.05 here) cancels; only their own noise (0.01) is left."""
    (result,) = effects(made_up(0.3, 0.2))
    assert result.effect.high - result.effect.low < 0.04


def test_rl_need_not_beat_the_oracle():
    assert not BASELINES.get("interpolation_peak").counts
    table = made_up(0.3, 0.2)
    oracle = table[table["arm"] == "averaging"].assign(arm="interpolation_peak", value=0.9)
    (result,) = effects(pd.concat([table, oracle], ignore_index=True))
    assert result.verdict == "RL heals more"


def test_seeds_can_be_chosen_and_the_table_reads_well():
    table = pd.concat([made_up(0.3, 0.2), made_up(0.1, 0.3, seeds=range(5))], ignore_index=True)
    (one,) = effects(table, seeds=list(range(5)))
    assert one.effect.value < 0 and one.effect.n == 5
    row = brief([one]).loc["made-up, from 300"]
    assert re.fullmatch(r"-(19|20)\.\d \[-\d+\.\d, -\d+\.\d\]", row["RL - best baseline"])
    assert row["best baseline"] == BASELINES.get(one.best).label and row["verdict"] == one.verdict
    row = brief(effects(table, seeds=[0])).iloc[0]
    assert re.fullmatch(r"-\d+\.\d", row["RL - best baseline"]), "one seed has no interval"


def test_summary_keeps_a_run_s_accuracies(small):
    sweep, _ = small
    work = sweep.folder / "work"
    run = Run(sweep.plan.config("plain", 0), work / "runs" / "plain-0", work)
    assert wide(summary(run).assign(condition="plain"), "ood").columns.tolist() == [
        "rl",
        "sft_continued",
        "start",
        "peak",
    ]


def mitigation_rows(ood_gain=0.2, id_gain=0.0):
    rows = []
    for seed in range(10, 15):
        for condition, gain, paid, angle in (("one-try", 0.0, 0.0, 0.1), ("rpsft", ood_gain, id_gain, 0.05)):
            luck = 0.01 * (seed - 12)
            for metric, shift in (("mean_angle_left", 0.01), ("mean_angle_right", -0.01)):
                for first, last, share in ((0, 8, 0.1), (8, 300, 0.9), (0, 300, 1.0)):
                    value = share * (angle + shift)
                    rows.append((condition, "rotation", "sft", first, last, seed, "weights", metric, value, 4))
            for split, value in (("ood", 0.1 + gain + luck), ("id", 0.6 + paid + luck)):
                for step, extra in ((8, 0.05), (300, 0.0)):
                    rows.append((condition, "sft", "sft", 0, step, seed, split, "accuracy", value + extra, 100))
                rows.append((condition, "rl", "rl", 300, 80, seed, split, "accuracy", value + 0.02, 100))
                rows.append((condition, "rl", "rl", 100, 80, seed, split, "accuracy", 0.0, 100))
    return pd.DataFrame(rows, columns=["condition", *COLUMNS])


def test_mitigations_are_compared_with_plain_sft_within_a_seed():
    table = mitigation_rows(0.2, -0.1)
    accuracies = mitigations(table, {"one-try": "plain SFT", "rpsft": "RPSFT"})
    assert len(accuracies) == 10 and accuracies["rl_ood"].notna().all()
    plain, held = accuracies[accuracies["mitigation"] == "plain SFT"], accuracies[accuracies["mitigation"] == "RPSFT"]
    assert held["ood"].mean() - plain["ood"].mean() == pytest.approx(0.2)
    assert plain["rl_ood"].mean() == pytest.approx(0.12), "RL from the end of SFT, not from step 100"
    row = compare_mitigations(accuracies, "plain SFT").loc["RPSFT"]
    assert row["OOD"] == "+20.0 [+20.0, +20.0]" and row["ID"] == "-10.0 [-10.0, -10.0]"
    assert row["angle (°)"].startswith(f"{np.degrees(-0.05):+.1f} [")
    text = best_mitigations(accuracies, "plain SFT")
    assert "RPSFT (+20.0" in text and "is that of **plain SFT**" in text, "RPSFT pays 10 points of ID accuracy"
    text = best_mitigations(mitigations(mitigation_rows(), {"one-try": "p", "rpsft": "RPSFT"}), "p")
    assert "is that of **RPSFT**: 32.0 %" in text
    assert at_peak(table, "one-try")["ood"].mean() == pytest.approx(0.15)


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "supported"), (-0.05, "not shown")])
def test_the_best_start_needs_more_than_every_comparable_mitigation(gain, verdict):
    accuracies = mitigations(mitigation_rows(gain), {"one-try": "plain SFT", "rpsft": "RPSFT"})
    text = best_start(accuracies, "plain SFT", "RPSFT")
    assert f"best start: {verdict}." in text and f"{100 * gain:+.1f} [" in text


def test_angles_are_from_the_base_to_the_end_and_mean_of_both_sides():
    accuracies = mitigations(mitigation_rows(), {"one-try": "plain SFT", "rpsft": "RPSFT"})
    held = accuracies[accuracies["mitigation"] == "RPSFT"]
    assert held["angle"].to_numpy() == pytest.approx(np.degrees(0.05))


def test_a_phase_that_is_not_measured_is_said_so():
    with pytest.raises(ValueError, match="no rows"):
        mitigations(mitigation_rows().iloc[:0], {"one-try": "plain SFT"})
