"""The command line: help that teaches, errors of one line."""

import shutil

import pytest
import yaml
from typer.testing import CliRunner

from oodlib.cli import app
from oodlib.config import CHECKOUT
from oodlib.io import read_table


def call(*words):
    return CliRunner().invoke(app, words, env={"COLUMNS": "200", "TERM": "dumb"})


def test_help_names_the_commands_and_where_to_start():
    result = call("--help")
    assert result.exit_code == 0
    for word in ("reproduce", "scorecard", "presets", "papermill", "outputs/tiny"):
        assert word in result.output
    assert "--set" in call("reproduce", "--help").output


def test_presets_are_listed():
    output = call("presets").output
    assert "tiny" in output and "smoke" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("reproduce", "--preset", "huge"), "unknown preset 'huge'"),
        (("reproduce", "--preset", "smoke", "--set", "sft.step=3"), "sft.steps"),
        (("reproduce", "--preset", "smoke", "--set", "sft.steps=no"), "sft.steps"),
        (("reproduce", "--preset", "smoke", "--seed", "-4"), "seed = -4"),
        (("scorecard", "nowhere"), "nowhere holds no finished run"),
        (("plan", "--preset", "smoke", "--rate", "nan"), "--rate nan"),
        (("plan", "--preset", "smoke", "--gpu-memory", "inf"), "--gpu-memory inf"),
        (("compare", "tiny", "tiny", "--out", "x", "--layers", "0-999999999"), "layers '0-999999999'"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(words, said):
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 3


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/x]", "[link=x.org]y", ":smile:"])
def test_names_are_shown_as_they_are(tmp_path, name, monkeypatch):
    monkeypatch.setattr("oodlib.analysis.stats.RESAMPLES", 10)  # intervals are not at stake here
    run, mine = tmp_path / name.replace("/", ""), tmp_path / "mine.yaml"
    run.mkdir()
    for file in ("hands.parquet", "rollouts.parquet", "rotation.parquet", "measurements.csv", "manifest.json"):
        shutil.copy(CHECKOUT / "outputs/tiny" / file, run)
    mine.write_text(yaml.safe_dump({"like": "smoke", "surgery": {"words": [name]}}))
    said = call("report", str(run)).output + call("scorecard", str(run)).output
    assert said.replace("\n", "").count(run.name) == 4 and "Scorecard" in said
    assert name in call("presets", str(mine)).output and name in call("presets", f"./{name}.yaml").output
    assert name in call("plan", "--set", f"sft.steps={name.replace('[', '(')}{name}").output


def test_characters_that_steer_a_terminal_are_shown_as_escapes_in_one_line():
    result = call("scorecard", "a\x1b[31mb\nc\u202ed")
    assert result.output == "error: a\\x1b[31mb\\nc\\u202ed holds no finished run (no hands.parquet)\n"


def test_a_run_s_tables_that_do_not_fit_together_are_named(tmp_path):
    for path in (CHECKOUT / "outputs/tiny").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    hands = read_table(tmp_path / "hands.parquet")
    hands.assign(split="nowhere").to_parquet(tmp_path / "hands.parquet")
    result = call("scorecard", str(tmp_path))
    assert result.exit_code == 2 and str(tmp_path) in result.output and "Traceback" not in result.output
    assert len(result.output.splitlines()) == 1


def test_a_plan_shows_escapes_in_a_preset_s_name_as_such(tmp_path):
    (tmp_path / "mine.yaml").write_text('like: smoke\nmodel: {source: "hub:a\\u009bb/c"}\n')
    assert "\x9b" not in call("plan", "--preset", str(tmp_path / "mine.yaml"), "--rate", "1", "--gpus", "0").output


@pytest.mark.parametrize("words", [("--steps", "0"), ("--belief", "2"), ("--seed", "-1")])
def test_a_base_of_impossible_numbers_is_refused_before_work(tmp_path, words):
    assert call("base", str(tmp_path / "x"), *words).exit_code == 2 and not (tmp_path / "x").exists()


def test_a_base_does_not_write_over_what_is_there(tmp_path):
    (tmp_path / "x").touch()
    assert "holds something already" in call("base", str(tmp_path)).output


def test_a_sweep_s_unknown_phase_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["sweep", "later", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "explore" in done.output and "later" in done.output
    none = CliRunner().invoke(app, ["sweep", "explore", "--at-once", "0", "--out", str(tmp_path)])
    assert none.exit_code == 2 and "at-once" in none.output
