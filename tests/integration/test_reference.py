"""The committed runs and the sweep: made by code of this history, by today's methods, and what their tables say."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from oodlib import STAGES, Run, ensure
from oodlib.analysis import Evidence, claims
from oodlib.analysis.plan import Plan
from oodlib.analysis.sweep import Sweep
from oodlib.cli import app
from oodlib.config import CHECKOUT, load_config
from oodlib.io import COLUMNS, KEYS
from oodlib.models.sources import NAMED
from oodlib.results import Results

OUTPUTS = CHECKOUT / "outputs"
REFERENCES = sorted(p.parent.name for p in OUTPUTS.glob("*/manifest.json") if (p.parent / "hands.parquet").exists())
BIG = 5 * 2**20


# ---- where they come from ------------------------------------------------------------------------------------


def git(*words, text=None):
    command = ["git", "-C", str(CHECKOUT), *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8", check=True).stdout


@pytest.fixture(scope="module")
def trees():
    """The hashes that the folder oodlib/ has had in the commits of this history."""
    try:
        if git("rev-parse", "--is-shallow-repository").strip() != "false":
            pytest.skip("a shallow clone does not have the whole history")
        commits = git("log", "--format=%H:oodlib")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git checkout")
    return set(git("cat-file", "--batch-check=%(objectname)", text=commits).splitlines())


def stale(stages, trees):
    """The stages of a manifest that code outside of this history measured, or an older method."""
    methods = {name: stage.method for name, stage in STAGES.items()}
    return [n for n, s in stages.items() if s["tree"] not in trees or s.get("method") != methods.get(n)]


@pytest.mark.parametrize("name", REFERENCES)
def test_every_stage_was_measured_by_this_history_and_today_s_method(name, trees):
    manifest = Results(OUTPUTS / name).manifest
    for run in manifest.get("runs", [manifest]):  # of a merged run each that it was made of
        assert not stale(run["stages"], trees)


def test_another_history_an_edited_tree_and_an_older_method_are_noticed(trees):
    tree = git("rev-parse", "HEAD:oodlib").strip()
    for change in ({"tree": "0" * 40}, {"tree": f"{tree} with changes in oodlib"}, {"method": 0}):
        assert stale({"sft": {"tree": tree, "method": STAGES["sft"].method, **change}}, trees) == ["sft"]
    assert not stale({"sft": {"tree": tree, "method": STAGES["sft"].method}}, trees)


@pytest.mark.parametrize("plan", ["sweep", "mitigations"])
def test_every_cell_of_a_sweep_was_measured_by_this_history_and_belongs_to_the_plan(plan, trees):
    sweep = Sweep(Plan(plan))
    cells, table = sweep.manifest["cells"], sweep.table()
    measured = {f"{c}/{seed}" for c, seed in zip(table["condition"], table["seed"], strict=True)}
    assert measured == {name.partition("/")[2] for name in cells}
    assert {cell["tree"] for cell in cells.values()} <= trees
    declared = {cell.name: cell for phase in sweep.plan.phases for cell in sweep.plan.cells(phase)}
    for name, cell in cells.items():  # by the settings and methods that it would be measured with now
        assert cell["mark"] == declared[name].mark, name


# ---- what they say -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=REFERENCES)
def reference(request):
    return Results(OUTPUTS / request.param)


@pytest.mark.parametrize("name", [n for n in REFERENCES if load_config(n).model.source in NAMED])
def test_a_reader_s_notebook_gets_it_without_running_anything(name, tmp_path):
    run = Run(load_config(name), tmp_path / "run")
    ensure(run, *STAGES)
    assert run.borrowed == set(STAGES)


def test_the_default_preset_has_a_committed_reference():
    assert "tiny" in REFERENCES


def test_it_is_small_and_holds_no_weights(reference):
    folder = reference.folder
    ignored = {"parts", "checkpoints", "report.html", "figures", "notebooks"}  # by git, but for a few
    kept = [p for p in folder.rglob("*") if p.is_file() and not ignored & set(p.parts)]
    tiny = reference.manifest["settings"]["model"]["source"] in NAMED  # a real model has more directions
    assert sum(p.stat().st_size for p in kept) <= BIG * (1 if tiny and len(reference.manifest["seeds"]) == 1 else 2)
    assert not [p for p in kept if p.suffix in (".safetensors", ".bin", ".pt")]


def test_its_table_is_tidy(reference):
    table = reference.table("measurements")
    assert list(table.columns) == COLUMNS
    assert not table.duplicated([*KEYS, "metric"]).any() and table["value"].notna().all()
    assert set(table["seed"]) == set(reference.manifest["seeds"])


def test_its_accuracies_are_the_shares_of_right_hands(reference):
    hands = reference.table("hands").astype(dict.fromkeys(("stage", "arm", "split", "outcome"), str))
    shares = (hands["outcome"] == "correct").groupby([hands[k] for k in KEYS]).mean().rename("share").reset_index()
    measured = reference.table("measurements").query("metric == 'accuracy'")
    measured = measured[measured["split"].isin(reference.splits.names)]  # of probes there are no hands
    both = measured.merge(shares, on=KEYS, how="outer")
    np.testing.assert_allclose(both["value"], both["share"], atol=1e-5)


def test_its_scorecard_is_what_its_tables_say(reference):
    committed = json.loads((reference.folder / "scorecard.json").read_text(encoding="utf-8"))
    again = json.loads(claims.as_json(claims.scorecard(Evidence.of(reference))))
    for old, new in zip(committed, again, strict=True):
        assert old["verdict"] == new["verdict"] and old["claim"] == new["claim"]
        for name in ("estimate", "ci_low", "ci_high", "paper"):
            assert (pd.isna(old[name]) and pd.isna(new[name])) or old[name] == pytest.approx(new[name], abs=1e-6)


def test_the_command_prints_the_scorecard_of_a_committed_run(monkeypatch):
    monkeypatch.setattr("oodlib.analysis.stats.RESAMPLES", 100)  # its numbers are tested above
    done = CliRunner().invoke(app, ["scorecard", str(CHECKOUT / "outputs" / "tiny")], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "C4" in done.output and "One seed" in done.output
