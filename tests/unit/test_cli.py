"""The command line: help that teaches, errors of one line."""

import pytest
from typer.testing import CliRunner

from oodlib.cli import app


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
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(words, said):
    result = call(*words)
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) <= 3


def test_a_sweep_s_unknown_phase_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["sweep", "later", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "explore" in done.output and "later" in done.output
