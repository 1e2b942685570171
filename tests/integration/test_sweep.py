"""The sweep: its plan is valid and fits its hours, cells are done once, and the notebooks read what there is."""

import json

import pandas as pd
import papermill
import pytest
from made_up_sweep import a_sweep

from oodlib.analysis.healing import wide
from oodlib.analysis.plan import Plan
from oodlib.analysis.predictors import forgetting
from oodlib.analysis.sweep import Sweep, spread, summary
from oodlib.config import CHECKOUT, load_config
from oodlib.io import COLUMNS
from oodlib.run import STAGES, Run
from oodlib.spectral.metrics import MEASURES
from oodlib.training.arms import measure_arm

TINY = """
like: smoke
common:
  eval: {every: 60, attempts: 1}
  sft: {steps: 4, checkpoints: [0, 2, 4]}
  rl: {starts: [4], steps: 2, updates_per_batch: 1, checkpoints: [1], baselines: []}
  machine: {jobs: 1}
conditions:
  plain: {why: the start, mitigation: plain SFT}
  averaged: {why: an edit, mitigation: averaging, changes: {sft: {mitigation: averaging}}}
blocks:
  main: {conditions: [plain], starts: [4], baselines: [sft_continued], drift: 6}
  more: {conditions: [plain], starts: [2, 4], baselines: [averaging]}
  mitigations: {conditions: [plain, averaged]}
phases:
  explore: {seeds: [0, 1], blocks: [main, more]}
  mitigations: {seeds: [0], blocks: [mitigations]}
"""


# ---- the plan --------------------------------------------------------------------------------------------


def test_every_cell_of_the_plan_is_a_valid_configuration_and_says_why():
    plan = Plan()
    for phase in plan.phases:
        for cell in plan.cells(phase):
            config = cell.config
            assert (
                config.n_seeds == 1 and plan.conditions[cell.condition]["why"] and set(config.seeds) <= set(range(40))
            )
            if "rl" in cell.stages:
                assert config.rl.starts == plan.blocks[cell.block]["starts"] and config.rl.baselines
    explored, confirmed = (set(plan.seeds(phase)) for phase in ("explore", "confirm"))
    assert explored <= set(range(5)) and confirmed == set(range(30, 40)), "no seed both explores and confirms"


def test_the_plan_fits_in_eight_hours_on_two_cores_and_the_report_has_the_sum():
    plan = Plan()
    hours = plan.hours("confirm")
    assert hours <= 8
    assert f"{hours:.1f} hours" in (CHECKOUT / "docs" / "sweep.md").read_text(encoding="utf-8")


def test_half_of_the_sweep_has_half_of_the_seeds_of_every_block():
    cells = list(Plan().cells("confirm"))
    half = cells[: len(cells) // 2]
    counts = pd.Series([(c.block, c.condition) for c in half]).value_counts()
    assert counts.nunique() == 1 and len(counts) == len({(c.block, c.condition) for c in cells})


def test_an_unknown_phase_block_or_condition_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'later'.*explore"):
        Sweep().left("later")
    with pytest.raises(ValueError, match=r"'cold'.*believer"):
        Plan().config("cold", 0)
    for change, message in (
        ("[main, more]", r"'mian'.*main"),
        ("{conditions: [plain], starts: [4]", r"'plane'.*plain"),
    ):
        text = TINY.replace(change, change.replace("main", "mian").replace("plain", "plane"))
        (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            Plan(tmp_path / "plan.yaml")
    (tmp_path / "plan.yaml").write_text("like: smoke", encoding="utf-8")
    with pytest.raises(ValueError, match="no plan of a sweep"):
        Plan(tmp_path / "plan.yaml")


def test_a_block_may_name_one_of_a_condition_s_strengths(tmp_path):
    text = """
like: smoke
conditions:
  plain: {mitigation: plain SFT}
  rate: {mitigation: rate, strengths: {sft.learning_rate: [1.0e-4, 5.0e-5]}}
blocks: {all: {conditions: [plain, rate]}, one: {conditions: [plain, "rate@0.0001"]}}
phases: {search: {seeds: [2], blocks: [all]}, report: {seeds: [3], blocks: [one]}}
"""
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    plan = Plan(tmp_path / "plan.yaml")
    assert plan.names("report") == ["plain", "rate@0.0001"]
    assert plan.names("search") == ["plain", "rate@0.0001", "rate@5e-05"]
    assert plan.mitigations("report")["mitigation"].is_unique
    assert plan.config("rate@0.0001", 0).sft.learning_rate == 1e-4


def test_the_plan_as_tables_says_what_each_condition_changes_and_what_runs_from_it():
    plan = Plan()
    assert plan.table("explore", "confirm").index.is_unique
    assert "schedule cosine" in plan.table("confirm").loc["cosine", "changes"]
    assert plan.arms("confirm").loc["main", "starts"] == "50, 100, 200, 300"
    assert Plan("mitigations").arms("search")["arms"].tolist() == ["none"]


# ---- one tiny sweep, run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "plan.yaml").write_text(TINY, encoding="utf-8")
    sweep = Sweep(Plan(folder / "plan.yaml"), folder / "out")
    steps = list(sweep.run("explore", at_once=2))
    return sweep, steps


def test_a_block_may_measure_drift_of_every_checkpoint_and_arm(small):
    sweep, _ = small
    drift = sweep.table().query("stage == 'drift' and condition == 'plain'")
    counts = drift.groupby(["arm", "from_step", "step"])["metric"].agg(set)
    wanted = {("sft", 0, 2), ("sft", 0, 4)} | {(arm, 4, step) for arm in ("rl", "sft_continued") for step in (1, 2)}
    assert set(counts.index) == wanted and all(set(MEASURES) < metrics for metrics in counts)
    known = drift[drift["metric"] != "kl_to_base_formed"]  # of six answers none may open as demonstrations do
    assert known["value"].notna().all() and set(drift["seed"]) == {0, 1}
    ends = drift[drift["arm"] == "rl"].groupby("step")["metric"].agg(set)
    assert ends.loc[1] == ends.loc[2] and {"id_loss", "mmd_1", "frechet_1"} <= ends.loc[1]
    kl = drift[drift["metric"] == "kl_from_base"].groupby("step")["value"].min()
    assert (kl > 0).all()
    points = forgetting(sweep.table(), sweep.splits)
    assert {"kl_from_base", "angle", "id_loss", "lost_new_rule"} <= set(points.columns)


def test_cells_run_in_groups_until_none_is_left(small):
    sweep, steps = small
    assert [[c.name for c in cells] for cells, _ in steps] == [
        ["main/plain/0", "main/plain/1"],
        ["more/plain/0", "more/plain/1"],
    ]
    assert [left for _, left in steps] == [2, 0]
    table = sweep.table()
    assert list(table.columns) == ["condition", *COLUMNS] and set(table["seed"]) == {0, 1}
    arms = set(table.loc[table["stage"] == "rl", ["arm", "from_step"]].itertuples(index=False, name=None))
    assert arms == {("rl", 2), ("rl", 4), ("sft_continued", 4), ("averaging", 2), ("averaging", 4)}
    assert {"accuracy", "wrong_value", "loss", "rotation", "reward_first", "advantage_skewness"} <= set(table["metric"])
    assert not table["split"].str.startswith("face").any() and "malformed" not in set(table["metric"])
    assert not table.duplicated(["condition", *COLUMNS[:-2]]).any()


def test_arms_that_train_are_measured_on_their_way_too(small):
    sweep, _ = small
    arms = sweep.table().query("stage == 'rl' and metric == 'accuracy' and split == 'id'")
    steps = arms.groupby("arm")["step"].agg(lambda steps: sorted(set(steps)))
    assert steps.to_dict() == {"rl": [1, 2], "sft_continued": [1, 2], "averaging": [2]}
    gains = wide(sweep.table(), "id")
    last = arms[(arms["step"] == 2) & (arms["from_step"] == 4)].set_index(["arm", "seed"])["value"]
    for seed in (0, 1):
        assert gains.loc[("plain", 4, seed), "rl"] == last["rl", seed], "a gain is the last update's"
    run = Run(sweep.plan.config("plain", 0, "main").changed({"rl.steps": 4, "rl.checkpoints": [2]}), sweep.folder)
    with pytest.raises(ValueError, match="no weights of rl from 4 after 2 updates were kept"):
        measure_arm(run, 0, "rl", 4, 2)


@pytest.mark.parametrize("wrong", [[2, 1], [80], [3]])
def test_updates_at_which_no_arm_can_be_measured_are_refused(wrong):
    changes = {"rl.steps": 80, "rl.updates_per_batch": 2, "rl.checkpoints": wrong}
    with pytest.raises(ValueError, match=r"rl\.checkpoints.*must rise, below rl\.steps"):
        load_config("tiny", changes)


def test_a_finished_sweep_runs_nothing_even_where_its_work_is_gone(small):
    sweep, _ = small
    again = Sweep(sweep.plan, sweep.folder)
    assert not again.left("explore") and list(again.run("explore")) == []


def test_cells_share_what_does_not_differ(small):
    sweep, _ = small
    parts = [p.name for p in (sweep.folder / "work" / "parts").rglob("rl-from-4-*") if p.is_dir()]
    assert len(parts) == 4, "one a seed, and one for the update between, not one a block"
    ((cell,), left) = next(sweep.run("mitigations"))
    assert cell.name == "mitigations/plain/0" and left == 1
    runs = (sweep.folder / "work" / "parts" / "sft" / "seed-0").iterdir()
    assert len([p for p in runs if p.name.startswith("train-")]) == 1


def test_a_changed_plan_makes_its_cells_new_and_drops_what_it_no_longer_has(small, tmp_path):
    sweep, _ = small
    changed = TINY.replace("baselines: [sft_continued]", "baselines: [rejection_sampling]")
    (tmp_path / "plan.yaml").write_text(changed, encoding="utf-8")
    left = Sweep(Plan(tmp_path / "plan.yaml"), sweep.folder).left("explore")
    assert {cell.block for cell in left} == {"main"}
    (tmp_path / "plan.yaml").write_text(TINY.replace("seeds: [0, 1]", "seeds: [1]"), encoding="utf-8")
    fewer = Sweep(Plan(tmp_path / "plan.yaml"), sweep.folder)
    new = sweep.table().query("seed == 1")
    assert set(fewer._merged(new)["seed"]) == {0, 1}, "seed 0 is still one of the phase mitigations"
    (tmp_path / "plan.yaml").write_text(TINY.replace("[0, 1]", "[1]").replace("[0]", "[1]"), encoding="utf-8")
    assert set(Sweep(Plan(tmp_path / "plan.yaml"), sweep.folder)._merged(new)["seed"]) == {1}


def test_a_notebook_s_parameter_that_there_is_none_of_is_named(monkeypatch):
    for values, said in (({"plan": "sweep", "phse": "x"}, "phse = 'x'.*phase"), ({"plan": 5}, "plan = 5: expected")):
        monkeypatch.setattr("oodlib.analysis.sweep.parameters", lambda first, values=values: values)
        with pytest.raises(ValueError, match=said):
            Sweep.from_notebook()


def test_a_method_that_measures_otherwise_makes_cells_new(small, monkeypatch):
    sweep, _ = small
    monkeypatch.setitem(STAGES, "rl", STAGES["rl"].__class__(("sft",), 99))
    assert len(sweep.left("explore")) == 4


def test_a_sweep_says_what_is_measured_and_what_is_missing(small, capsys):
    sweep, _ = small
    again = Sweep.open(sweep.folder.parent / "plan.yaml", sweep.folder)
    assert "explore: 4 of 4 cells are measured" in capsys.readouterr().out
    assert again.rows("explore")["condition"].unique().tolist() == ["plain"]
    assert "All 4 cells" in again.missing("explore")
    with pytest.raises(RuntimeError, match="no measurements yet"):
        Sweep.open("sweep", sweep.folder / "empty")
    with pytest.raises(RuntimeError, match="nothing of confirm"):
        Sweep(folder=sweep.folder).rows("confirm")


def test_summary_keeps_a_run_s_accuracies(small):
    sweep, _ = small
    work = sweep.folder / "work"
    run = Run(sweep.plan.config("plain", 0, "main").changed({"n_seeds": 2}), work / "runs" / "main-plain-0", work)
    assert wide(summary(run).assign(condition="plain"), "ood").columns.tolist() == [
        "rl",
        "sft_continued",
        "start",
        "peak",
    ]


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
    assert numbers == {"groups_without_contrast": 0.5, "solved": 0.75, "advantage_skewness": 0}


# ---- the notebooks, whatever is there ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plan", "phases", "seed"),
    [
        ("05_when_does_rl_heal", "sweep", ["confirm"], 30),
        ("06_mitigations", "mitigations", ["search"], 0),
        ("06_mitigations", "mitigations", ["search", "mitigations"], 20),
    ],
    ids=["05", "06 after the search", "06"],
)
def test_the_notebooks_run_with_one_seed_and_say_what_is_missing(name, plan, phases, seed, tmp_path):
    options = {"without": ("rejection_sampling_fresh",)}
    sweep = a_sweep(
        tmp_path / plan, plan, phases, {phase: [seed if phase == phases[-1] else 0] for phase in phases}, **options
    )
    notebook, out = CHECKOUT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(notebook, out, {"folder": str(sweep.folder)}, progress_bar=False, kernel_name="python3")
    text = str([cell.get("outputs") for cell in json.loads(out.read_text(encoding="utf-8"))["cells"]])
    assert "Not all is measured" in text and text.count("image/png") >= 3
    assert ("flatters them" in text) == (phases == ["search"])
