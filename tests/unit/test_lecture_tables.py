"""The tables and sentences of oodlib/lecture.py, from the committed run, small tables, and the tiny base model."""

import pandas as pd
import pytest

from oodlib import lecture
from oodlib.analysis.stats import rotation_and_accuracy
from oodlib.config import CHECKOUT, load_config
from oodlib.io import COLUMNS
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.run import Results, Run


@pytest.fixture(scope="module")
def results():
    return Results(CHECKOUT / "outputs" / "tiny-seeds")


@pytest.fixture(scope="module")
def tiny():
    return load_model(model_folder("tiny"))


def rows(*found):
    return pd.DataFrame(found, columns=COLUMNS)


@pytest.mark.parametrize(("name", "shown"), [("tiny", "J = 10"), ("custom", "=\n"), ("qwen2.5-0.5b", "card game")])
def test_one_problem_of_each_split_of_any_task_and_style(name, shown):
    run = Run(load_config(name))
    table = lecture.one_problem_of_each_split(run)
    assert list(table.index) == ["ID", "OOD"]
    assert table.loc["ID", "problems"] == len(run.task.split("id"))
    assert any(shown in prompt for prompt in table["first prompt"])
    for split, answer in table["a correct answer"].items():
        assert run.task.verify(run.task.split(split.lower())[0], answer).outcome == "correct"


def test_the_base_plays_by_any_rule_and_breaks_the_format(tiny):
    table = lecture.base_model_table(*tiny, hands=30)
    assert list(table["rule"].unique()) == ["ID", "OOD", "neither"] and len(table) == 6
    plain = table[table["format"] == lecture.PLAIN]
    assert (plain["right formula"] > 0.1).all() and (plain["right formula"] <= plain["right numbers"]).all()
    assert (table["in JSON"] < 0.3).all()


def test_the_base_uses_the_checker_s_message(tiny):
    said = lecture.second_attempt(*tiny, hands=20).data
    dialogue = said.split("```")[1]
    assert "J = 10 Q = 10 K = 10" in dialogue and "no ; numbers" in dialogue
    assert "of 20 first answers" in said


def test_wrong_answers_go_from_the_peak_to_the_end():
    table = rows(
        *(("sft", "sft", 0, t, s, "ood", "accuracy", v, 9) for s in (1, 2) for t, v in ((0, 0.0), (4, 0.5), (8, 0.1))),
        *(("sft", "sft", 0, t, 1, "ood", "wrong_numbers", v, 9) for t, v in ((4, 0.1), (8, 0.8))),
        *(("sft", "sft", 0, t, 1, "ood", "wrong_value", v, 9) for t, v in ((4, 0.4), (8, 0.2))),
    )
    said = lecture.wrong_answers(table)
    assert "step 4" in said and "from 10% to 80%" in said and "from 40% to 20%" in said


def test_sentences_on_rotation(results):
    measurements = results.table("measurements")
    tables = {stage: rotation_and_accuracy(measurements, stage) for stage in ("sft", "rl")}
    assert "with rotation is -1.00" in lecture.rotation_sentence(tables["sft"], "sft").data
    assert "OOD gain" in lecture.rotation_sentence(tables["rl"], "rl").data
    assert "FSDP" in lecture.rotation_sentence(tables["sft"].iloc[:0], "sft").data


def test_recovery_is_in_percent_beside_the_start():
    table = lecture.recovery_table(
        rows(
            *(("sft", "sft", 0, t, s, "ood", "accuracy", v, 9) for t, s, v in ((4, 1, 0.2), (4, 2, 0.4), (8, 1, 0.1))),
            *(("rl", arm, 4, 80, 1, "ood", "accuracy", v, 9) for arm, v in (("rl", 0.5), ("sft_continued", 0.45))),
        )
    )
    assert list(table.index) == [4] and set(table["ood"].columns) == {"start", "rl", "sft_continued"}
    assert table.loc[4, ("ood", "start")] == 30.0 and table.loc[4, ("ood", "rl")] == 50.0
