"""The sweep: its plan is valid, cells are done once, and made-up data get the verdicts that they ask for."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from oodlib.analysis.claims import PAPER
from oodlib.analysis.healing import (
    CONTROLS,
    VERDICTS,
    answer,
    as_table,
    beside_the_paper,
    brief,
    contrasts,
    effects,
    later_tries,
    rules,
    side_by_side,
    skewness_and_gain,
    turned,
    turned_back,
    wide,
)
from oodlib.analysis.mitigations import (
    angles,
    at_peak,
    best_remedies,
    best_start,
    compare_remedies,
    remedies,
    step_times,
    turning_and_forgetting,
    ways_of_sft,
)
from oodlib.analysis.sweep import PLAN, Plan, Sweep, spread, summary
from oodlib.config import ROOT
from oodlib.plots import sweep as figures_sweep
from oodlib.plots.style import COLOURS, NAMES, neat, style
from oodlib.run import COLUMNS, Run
from oodlib.training.mitigations.early_stopping import PROBE
from oodlib.training.trainer import recent

TINY = """
like: smoke
common: {eval_every: 60, verify_turns: 2, sft_steps: 4, sft_checkpoints: [0, 2, 4], rl_from: [4], rl_steps: 2,
  rl_arms: [rl, sft_continued]}
conditions:
  plain: {why: the start}
  one-try: {why: fewer tries, changes: {rl_turns: 1}}
phases:
  explore: {seeds: [0, 1], conditions: [plain, one-try]}
"""


def test_every_condition_of_the_plan_is_a_valid_preset_and_says_why():
    plan = Plan(PLAN)
    for name, condition in plan.conditions.items():
        assert condition["why"] and plan.preset(name, 0).n_seeds == 1
    explored, confirmed = (set(plan.phases[p]["seeds"]) for p in ("explore", "confirm"))
    assert explored <= set(range(5)) and confirmed <= set(range(10, 20)), "no seed both explores and confirms"


def test_an_unknown_phase_or_condition_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'later'.*explore"):
        Sweep().left("later")
    with pytest.raises(ValueError, match=r"'cold'.*one-try"):
        Plan(PLAN).preset("cold", 0)
    (tmp_path / "plan.yaml").write_text(TINY.replace("conditions: [plain,", "conditions: [plane,"))
    with pytest.raises(ValueError, match=r"'plane'.*plain"):
        Plan(tmp_path / "plan.yaml")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "plan.yaml").write_text(TINY)
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
    (tmp_path / "plan.yaml").write_text(TINY.replace("rl_turns: 1", "rl_turns: 1, rl_learning_rate: 2.0e-5"))
    left = Sweep(Plan(tmp_path / "plan.yaml"), sweep.folder).left("explore")
    assert {cell.condition for cell in left} == {"one-try"}


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
    found = {name: value for name, value, _ in spread(played)}
    assert found["groups_without_contrast"] == 0.5 and found["solved"] == 0.75
    assert found["advantage_skewness"] == 0 and found["centred_q50"] == 0 and found["centred_q95"] > 2


# ---- the analysis, on made-up data -------------------------------------------------------------------------


def made_up(rl, control, start=0.1, peak=0.4, noise=0.01, seeds=range(10, 20), bought=0.0):
    """Seeds whose arms share a part of their luck; the control `sft_continued` pays `bought` of ID accuracy."""
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
            same = {"rl": rl if split == "ood" else 0.5, "sft_continued": control if split == "ood" else 0.5 - paid}
            same["averaging"] = control - 0.05 if split == "ood" else 0.5
            for arm, value in same.items():
                add("rl", arm, 300, 80, seed, split, value + own + rng.normal(0, noise))
    return pd.DataFrame(rows, columns=["condition", *COLUMNS])


@pytest.mark.parametrize(
    ("rl", "control", "start", "noise", "verdict"),
    [
        (0.3, 0.2, 0.1, 0.01, "RL heals more"),
        (0.2, 0.3, 0.1, 0.01, "a control heals more"),
        (0.1, 0.05, 0.2, 0.01, "RL does not heal"),
        (0.2, 0.201, 0.1, 0.005, "level with a control"),
        (0.2, 0.19, 0.1, 0.06, "undecided"),
        (0.5, 0.2, 0.45, 0.01, "nothing lost"),
    ],
)
def test_verdicts_follow_the_numbers(rl, control, start, noise, verdict):
    (found,) = effects(made_up(rl, control, start, noise=noise))
    assert found.verdict == verdict
    assert found.effect.value == pytest.approx(rl - control, abs=0.05) and found.effect.n == 10
    assert found.best == "sft_continued" and set(found.against) == {"sft_continued", "averaging"}


def test_a_control_that_pays_with_id_accuracy_does_not_count():
    (found,) = effects(made_up(0.2, 0.3, bought=0.1))
    assert found.behind == ("sft_continued",) and found.best == "averaging"
    assert found.against["sft_continued"].high < 0, "it is still shown"
    assert found.verdict == "a control heals more", "averaging is above RL, and paid nothing"
    (found,) = effects(made_up(0.27, 0.3, bought=0.1))
    assert found.verdict == "RL heals more"


@pytest.mark.parametrize(("rise", "verdict"), [(1.0, "RL heals more"), (0.0, "RL did not learn")])
def test_where_the_return_does_not_rise_rl_was_not_put_to_the_test(rise, verdict):
    table, rng = made_up(0.3, 0.2), np.random.default_rng(2)
    returns = [
        ("made-up", "rl", "rl", 300, 80, seed, "train", f"reward_{end}", value + rng.normal(0, 0.1), 8)
        for seed in table["seed"].unique()
        for end, value in (("first", 1.0), ("last", 1.0 + rise))
    ]
    table = pd.concat([table, pd.DataFrame(returns, columns=table.columns)], ignore_index=True)
    (found,) = effects(table)
    assert found.verdict == verdict and found.learnt.value == pytest.approx(rise, abs=0.1)
    assert ("nothing to heal" in answer([found], later_tries(table))) == (rise == 0)
    if rise:
        assert len(figures_sweep.healing_map(table, [found]).axes) == 2, "one panel and the colour bar"
    else:
        with pytest.raises(ValueError, match="no map"):
            figures_sweep.healing_map(table, [found])


def test_the_answer_counts_the_verdicts_and_labels_its_intervals():
    table = made_up(0.3, 0.2)
    found = effects(table)
    text = answer(found, later_tries(table))
    assert "**1** RL heals more" in text and "first try" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| made-up, from 300 |")]
    assert f"{as_table(found).loc[0, 'RL - best control']} (SFT continued)" in row and "| – |" in row, "no rejection"
    assert "above 0 in 1 (made-up, from 300)" in text
    nothing = made_up(0.5, 0.2, 0.45)
    assert "nothing to heal" in answer(effects(nothing), later_tries(nothing))


def test_what_later_tries_add_is_not_laid_to_the_messages_and_may_change_its_sign():
    """All tries gain 2 points less than the first in one condition, 3 more in the other."""
    parts = []
    for condition, more in (("less", -0.02), ("more", 0.03)):
        mine = made_up(0.3, 0.2, noise=0.0).assign(condition=condition)
        later = (mine["metric"] == "accuracy") & (mine["arm"] == "rl")
        parts.append(mine.assign(value=mine["value"] + more * later))
    table = pd.concat(parts, ignore_index=True)
    found, later = effects(table), later_tries(table)
    assert [round(later[r, 300][2].value, 3) for r in ("less", "more")] == [-0.02, 0.03]
    assert later["less", 300][1].value - later["less", 300][0].value == pytest.approx(-0.02)
    text = answer(found, later)
    assert "whatever RL did to later tries, the use of the messages included; it changes sign between starts" in text
    assert "above 0 in 1 (more, from 300), below 0 in 1 (less, from 300)" in text
    assert "changes sign" not in answer(found[:1], later)


def test_every_verdict_has_its_rule_and_a_look_of_its_own():
    assert rules()["the first that applies"].tolist() == list(VERDICTS) == list(dict.fromkeys(VERDICTS))
    looks = figures_sweep.HEAL_LOOKS
    assert set(looks) == set(VERDICTS)
    for looked in zip(*looks.values(), strict=True):
        assert len(set(looked)) == len(VERDICTS)
    assert not {colour for colour, _ in looks.values()} & set(COLOURS.values())
    assert not set(figures_sweep.REMEDY_COLOURS) & set(COLOURS.values())


def test_the_paper_s_rows_are_less_the_checkpoint_from_which_rl_starts():
    found = effects(made_up(0.3, 0.2))
    table, llama = beside_the_paper(found), PAPER["stages"]["llama-3.2-11b"]["ood"]
    (best,) = [row for row in table.index if "the best of" in row]
    assert "from step 1100" in best and table.loc[best, "RL - start"] == f"{llama['rl'] - llama['sft_end']:+.1f}"
    (own,) = as_table(found).to_dict("records")
    assert table.loc["made-up, from 300"].tolist() == [own["RL - start"], own["RL - best trained control"]]


def test_intervals_are_paired_within_a_seed():
    """What the arms of a seed share (0.05 here) cancels; only their own noise (0.01) is left."""
    (found,) = effects(made_up(0.3, 0.2))
    assert found.effect.high - found.effect.low < 0.04


def test_the_oracle_is_no_control():
    assert "interpolation_peak" not in CONTROLS
    table = made_up(0.3, 0.2)
    oracle = table[table["arm"] == "averaging"].assign(arm="interpolation_peak", value=0.9)
    (found,) = effects(pd.concat([table, oracle], ignore_index=True))
    assert found.verdict == "RL heals more"


def test_seeds_can_be_chosen_and_the_table_reads_well():
    table = pd.concat([made_up(0.3, 0.2), made_up(0.1, 0.3, seeds=range(5))], ignore_index=True)
    (found,) = effects(table, seeds=list(range(5)))
    assert found.effect.value < 0 and found.effect.n == 5
    (row,) = as_table([found]).to_dict("records")
    assert re.fullmatch(r"-(19|20)\.\d \[-\d+\.\d, -\d+\.\d\]", row["RL - best control"]) and row["seeds"] == 5
    (row,) = as_table(effects(table, seeds=[0])).to_dict("records")
    assert re.fullmatch(r"-\d+\.\d", row["RL - best control"]), "one seed has no interval"


def test_the_short_table_says_the_same_and_names_controls_as_figures_do():
    found = effects(made_up(0.3, 0.2))
    short, whole = brief(found), as_table(found)
    (row,) = short.index
    assert row == f"made-up, from {found[0].start}"
    for column in ("RL - start", "RL - best control", "the same on ID", "verdict"):
        assert short.loc[row, column] == whole.loc[0, column]
    assert short.loc[row, "best control"] == NAMES[found[0].best].split(": ")[-1]


def test_what_was_not_run_is_empty_in_the_table_and_a_dash_on_the_page():
    table = pd.concat([made_up(0.3, 0.2), made_up(0.3, 0.2).query("arm != 'averaging'").assign(condition="<b>other")])
    found = side_by_side(table)
    ood, held = (wide(table, split)["rl"].groupby(["condition", "from_step"]).mean() for split in ("ood", "id"))
    assert found.loc["made-up, from 300", "rl"] == f"{100 * ood['made-up', 300]:.1f} / {100 * held['made-up', 300]:.1f}"
    assert found.loc["<b>other, from 300", "averaging"] == "" != found.loc["made-up, from 300", "averaging"]
    page = neat(found).to_html()
    assert page.count(">–<") == 1 and "<b>" not in page and "&lt;b&gt;other" in page


def test_contrasts_are_paired_differences_of_gains():
    one, other = made_up(0.3, 0.2), made_up(0.35, 0.2).assign(condition="other")
    found = contrasts(pd.concat([one, other]), [(("other", 300), ("made-up", 300)), (("other", 8), ("made-up", 8))])
    assert len(found) == 2 and set(found["tries"]) == {"first", "all"} and set(found["seeds"]) == {10}
    for column in ("RL's gain differs by (t)", "(bootstrap)"):
        value, low, high = map(float, re.findall(r"[-+][0-9.]+", found[column].iloc[0]))
        assert low <= value <= high and value == pytest.approx(5, abs=0.1)


def test_turning_is_counted_from_the_start_and_towards_the_peak():
    rows = [
        ("r", "rotation", arm, 300, 80, 10, "weights", metric, value, 1)
        for arm, value in (("rl", 0.1), ("rl to peak", 0.3), ("sft to peak", 0.5))
        for metric in ("mean_angle_left", "mean_angle_right")
    ]
    table = pd.DataFrame(rows, columns=["condition", *COLUMNS])
    (row,) = turned(table).to_dict("records")
    assert row["arm"] == "rl" and row["angle"] == pytest.approx(0.1) and row["towards_peak"] == pytest.approx(0.2)
    second = table.assign(seed=11, value=table["value"].where(table["arm"] != "rl to peak", 0.4))
    found = turned_back(pd.concat([table, second]), "r")
    assert found.index.tolist() == ["after RL"] and found.columns.tolist() == ["from step 300 (°)"]
    assert found.iloc[0, 0].startswith(f"{np.degrees(0.15):+.2f} [")


def test_skewness_is_set_against_the_gain_where_rl_learnt():
    gains, skews = (0.3, 0.25, 0.2), (-0.1, 0.2, -0.3)  # the less skewed, the more gain
    tables = []
    for i, (gain, skew) in enumerate(zip(gains, skews, strict=True)):
        made = made_up(gain, 0.2)
        row = made.iloc[[0]].assign(split="rollouts", stage="rl", arm="rl", from_step=300, metric="advantage_skewness")
        tables.append(pd.concat([made, row.assign(value=skew)]).assign(condition=f"r{i}"))
    table = pd.concat(tables)
    assert "Over the 3 starts" in (said := skewness_and_gain(table, effects(table))) and "correlation of -1.00" in said
    assert "too few" in skewness_and_gain(tables[0], effects(tables[0]))


def test_summary_keeps_a_run_s_accuracies(small):
    sweep, _ = small
    work = sweep.folder / "work"
    run = Run(sweep.plan.preset("plain", 0), work / "runs" / "plain-0", work)
    assert wide(summary(run).assign(condition="plain"), "ood").columns.tolist() == [
        "rl",
        "sft_continued",
        "start",
        "peak",
    ]


def test_the_committed_table_belongs_to_the_committed_plan():
    sweep = Sweep()
    names = {f"{r}/{s}" for r, s in sweep.table()[["condition", "seed"]].drop_duplicates().itertuples(index=False)}
    assert names == set(sweep.manifest()["cells"])
    mine = {cell.name: cell.mark for phase in sweep.plan.phases for cell in sweep.plan.cells(phase)}
    assert {n: c["mark"] for n, c in sweep.manifest()["cells"].items()} == {n: mine[n] for n in names}
    for phase in sweep.plan.phases:
        assert len(sweep.codes(phase)) <= 1, "all of a phase was measured with one version of the code"


def test_one_phase_is_not_measured_with_two_versions_of_the_code(small, monkeypatch):
    sweep, _ = small
    monkeypatch.setattr("oodlib.analysis.sweep.code_digest", lambda: "other")
    with pytest.raises(RuntimeError, match=r"other code.*commit"):
        next(sweep.run("explore"))


def remedy_rows(ood_gain=0.2, id_gain=0.0):
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


def test_remedies_are_compared_with_plain_sft_within_a_seed():
    table = remedy_rows(0.2, -0.1)
    found = remedies(table, {"one-try": "plain SFT", "rpsft": "RPSFT"})
    assert len(found) == 10 and found["rl_ood"].notna().all()
    plain, held = found[found["remedy"] == "plain SFT"], found[found["remedy"] == "RPSFT"]
    assert held["ood"].mean() - plain["ood"].mean() == pytest.approx(0.2)
    assert plain["rl_ood"].mean() == pytest.approx(0.12), "RL from the end of SFT, not from step 100"
    row = compare_remedies(found, "plain SFT").set_index("remedy").loc["RPSFT"]
    assert row["OOD"] == "+20.0 [+20.0, +20.0]" and row["ID"] == "-10.0 [-10.0, -10.0]"
    text = best_remedies(found, "plain SFT")
    assert "RPSFT (+20.0" in text and "not shown to be lower for: none" in text
    assert "is that of **plain SFT**" in text and "trade-off: RPSFT (OOD 32.0 %, ID 52.0 %)" in text, "10 points of ID"
    text = best_remedies(remedies(remedy_rows(), {"one-try": "p", "rpsft": "RPSFT"}), "p")
    assert "lower for: RPSFT" in text and "is that of **RPSFT**" in text and "trade-off" not in text
    assert at_peak(table, "one-try")["ood"].mean() == pytest.approx(0.15)


def test_within_three_points_of_id_accuracy_two_margins_name_two_remedies():
    found = remedies(remedy_rows(0.2, -0.03), {"one-try": "plain SFT", "rpsft": "RPSFT"})
    text = best_remedies(found, "plain SFT")
    assert "is that of **RPSFT**" in text and "within 2 points it is **plain SFT**" in text


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "supported"), (-0.05, "not shown")])
def test_the_best_start_needs_more_than_every_comparable_remedy(gain, verdict):
    found = remedies(remedy_rows(gain), {"one-try": "plain SFT", "rpsft": "RPSFT"})
    text = best_start(found, "plain SFT", "RPSFT")
    assert f"best start: {verdict}." in text and f"{100 * gain:+.1f} [" in text


def test_angles_are_from_the_base_to_the_end_and_mean_of_both_sides():
    found = remedies(remedy_rows(), {"one-try": "plain SFT", "rpsft": "RPSFT"})
    held = found[found["remedy"] == "RPSFT"]
    assert held["angle"].to_numpy() == pytest.approx(np.degrees(0.05))
    table = angles(found, "plain SFT")
    assert table.index.tolist() == ["RPSFT", "plain SFT"], "least first"
    assert table.loc["RPSFT", "less plain SFT (°)"].startswith(f"{np.degrees(-0.05):+.1f} [")
    (axis,) = figures_sweep.angles(found).axes
    assert np.degrees(0.05) == pytest.approx(axis.lines[-1].get_xdata()[0])


def test_whether_less_turning_goes_with_less_forgetting():
    """Three ways on a falling line; the adapter turns furthest, and keeps most or least."""
    ways = {"plain SFT": (7.0, 0.1), "a": (5.0, 0.2), "b": (3.0, 0.3)}

    def text(adapter, ways=ways):
        rows = [
            (name, seed, angle + 0.01 * seed, ood + 0.001 * seed)
            for name, (angle, ood) in {**ways, "LoRA": adapter}.items()
            for seed in range(3)
        ]
        found = pd.DataFrame(rows, columns=["remedy", "seed", "angle", "ood"])
        return turning_and_forgetting(found, "plain SFT", "LoRA")

    assert "3 ways that train all parameters, less turning goes with less forgetting" in text((9.0, 0.3))
    assert "-1.00 over their means" in text((9.0, 0.3)) and "+2.0° [" in text((9.0, 0.3))
    assert "LoRA breaks the rule" in text((9.0, 0.3)) and "LoRA does not break the rule" in text((9.0, 0.05))
    other = {name: (angle, 0.4 - ood) for name, (angle, ood) in ways.items()}
    assert "not shown to go with less" in text((9.0, 0.3), other)


def test_step_times_within_the_spread_are_no_difference():
    rows = [("none", 0.20, 0.19, 0.21, 1.0), ("rpsft", 0.19, 0.18, 0.2, 0.95), ("kl", 0.4, 0.39, 0.41, 2.0)]
    times = pd.DataFrame(rows, columns=["remedy", "seconds a step", "lowest", "highest", "times plain SFT"])
    table, text = step_times(times, {"none": "plain SFT", "rpsft": "RPSFT", "kl": "KL"})
    assert table.index.tolist() == ["plain SFT", "RPSFT", "KL"]
    assert "10%" in text and "RPSFT (0.95 times)" in text and "KL" not in text


def test_notebook_06_says_the_settings_of_the_plan():
    plan = Plan(PLAN)
    presets = {n: plan.preset(r, 0) for r, n in plan.phases["remedies"]["names"].items()}
    plain, lower, lora = (presets[n] for n in ("plain SFT", "lower rate", "LoRA"))
    width = json.loads((ROOT / "oodlib" / "base" / "config.json").read_text())["hidden_size"]
    wanted = {
        "plain SFT": f"rate {plain.sft_learning_rate:g}, {plain.sft_steps} steps",
        "decayed rate": f"{presets['decayed rate'].sft_schedule} to 0",
        "lower rate": f"rate × 1/{plain.sft_learning_rate / lower.sft_learning_rate:g}",
        "RPSFT": f"weight {presets['RPSFT'].sft_remedy_weight:g}, leading quarter",
        "KL to the base": f"weight {presets['KL to the base'].sft_remedy_weight:g}",
        "LoRA": f"rank {lora.sft_remedy_share * width:g}, rate × {lora.sft_learning_rate / plain.sft_learning_rate:g}",
        "averaging": f"last {plain.sft_steps - recent(plain.sft_steps)[0]} steps",
        "interpolation": f"1/{1 / presets['interpolation'].sft_remedy_share:g} of the way",
        "early stopping": f"{PROBE} problems of the OOD split itself",
    }
    assert presets["RPSFT"].sft_remedy_share == 0.25 and list(wanted) == list(presets)
    text = "".join(json.loads((ROOT / "notebooks" / "06_remedies.ipynb").read_text())["cells"][0]["source"])
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    said = {row[1].removesuffix(" (arXiv:2605.10973)"): row[4] for row in rows[2:]}
    assert said == wanted


def test_a_phase_that_is_not_measured_is_said_so():
    with pytest.raises(ValueError, match="no rows"):
        remedies(remedy_rows().iloc[:0], {"one-try": "plain SFT"})


def sft_of(peak, end, angle, seeds=(10, 11, 12)):
    """Measurements of SFT that peaks at step 8, as `Run.table` gives them."""
    rows = []
    for seed in seeds:
        luck = 0.01 * (seed - 11)
        for step, ood, rotation in ((8, peak, angle / 2), (100, end, angle)):
            place = ("sft", "sft", 0, step, seed)
            rows += [(*place, "ood", "accuracy", ood + luck, 796), (*place, "id", "accuracy", 0.5, 566)]
            rows += [(*place, "weights", "rotation", rotation + luck, 28)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_ways_of_sft_side_by_side():
    runs = {"all parameters": sft_of(0.4, 0.1, 0.2), "LoRA": sft_of(0.3, 0.2, 0.1)}
    table = ways_of_sft(runs)
    half = 100 * 0.01 * stats.t.ppf(0.975, 2) / 3**0.5
    assert table.loc["LoRA", "OOD at its peak (%)"] == f"30.0 [{30 - half:.1f}, {30 + half:.1f}]"
    assert table.loc["all parameters", "turned at the end (°)"].startswith(f"{np.degrees(0.2):.1f} [")
    lower = figures_sweep.beside(runs).axes[2:]
    assert [axis.lines[0].get_ydata()[-1] for axis in lower] == pytest.approx(np.degrees([0.2, 0.1]))


def test_every_committed_figure_can_be_read_in_a_notebook(smallest_text, texts_on_texts):
    style()
    sweep = Sweep.open(None, None)
    table, rows = sweep.rows("confirm"), sweep.rows("remedies")
    names = sweep.plan.phases["remedies"]["names"]
    found, healed = remedies(rows, names), effects(table)
    condition, way = table["condition"].iloc[0], sft_of(0.4, 0.1, 0.2)
    drawn = {
        "05_forest": figures_sweep.forest(healed),
        "05_arms": figures_sweep.arms(table, condition),
        "05_by_try": figures_sweep.by_try(table, [r for r in table["condition"].unique() if r != "cosine"], 100),
        "05_map": figures_sweep.healing_map(table, healed),
        "05_advantages": figures_sweep.advantage_spread(table, healed),
        "05_turning": figures_sweep.turning(table, condition),
        "06_pareto": figures_sweep.pareto(found, at_peak(rows, next(iter(names)))),
        "06_angle": figures_sweep.angles(found),
        "06_best_start": figures_sweep.best_start(found),
        "06_lora": figures_sweep.beside({"all parameters": way, "LoRA": way}),
    }
    assert {p.stem for p in (sweep.folder / "figures").glob("*.png")} == set(drawn)
    for name, figure in drawn.items():
        assert smallest_text(figure) >= 9, name
        assert texts_on_texts(figure) == [], name
        plt.close(figure)
