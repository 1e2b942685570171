"""The tables and sentences of oodlib/lecture.py, from the committed run, small tables, and the tiny base model."""

import pandas as pd
import pytest

from oodlib import lecture
from oodlib.analysis.stats import rotation_and_accuracy
from oodlib.config import CHECKOUT, load_config
from oodlib.io import COLUMNS
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.results import Results
from oodlib.run import Run
from oodlib.tasks import Split, Splits, get_task


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
    other = lecture.other_task(run)
    assert (other is None) == (name != "custom") and (not other or "**OOD** changes" in other.data)
    table = lecture.one_problem_of_each_split(run)
    assert list(table.index) == [split.label for split in run.splits]
    assert any(shown in prompt for prompt in table["first prompt"])
    for split in run.splits:
        row, problems = table.loc[split.label], run.task.split(split.name)
        assert row["problems"] == len(problems)
        assert run.task.verify(problems[0], row["a correct answer"]).outcome == "correct"


def test_the_base_plays_the_corners_and_breaks_the_format(tiny):
    table = lecture.base_model_table(*tiny, hands=30)
    rules = dict(zip(table["corner"], table["J, Q, K"], strict=True))
    assert rules == {"ID": "10, 10, 10", "new rule": "5, 6, 7", "new numbers": "10, 10, 10", "OOD": "11, 12, 13"}
    plain = table[table["format"] == lecture.PLAIN]
    assert len(plain) == 4 and (plain["right formula"] <= plain["right numbers"]).all()
    assert (plain.set_index("corner").loc[["ID", "OOD"], "right formula"] > 0.1).all()
    assert (table["in JSON"] < 0.3).all()


def test_the_base_uses_the_checker_s_message(tiny):
    said = lecture.second_attempt(*tiny, hands=20).data
    dialogue = said.split("```")[1]
    assert "J = 10 Q = 10 K = 10" in dialogue and "no ; numbers" in dialogue
    assert "of 20 first answers" in said


def shares(step, split, **metrics):
    return [("sft", "sft", 0, step, seed, split, metric, v, 9) for seed in (1, 2) for metric, v in metrics.items()]


def test_what_is_forgotten_is_told_by_corner():
    table = rows(
        *shares(0, "ood", accuracy=0.0, numbers_read=0.0, old_rule=0.0, wrong_value=0.0),
        *shares(4, "ood", accuracy=0.5, numbers_read=0.9, old_rule=0.1, wrong_value=0.4),
        *shares(8, "ood", accuracy=0.1, numbers_read=0.2, old_rule=0.3, wrong_value=0.2),
        *shares(4, "id", accuracy=0.5, numbers_read=0.9, old_rule=0.5, wrong_value=0.4),
        *shares(8, "id", accuracy=0.7, numbers_read=0.8, old_rule=0.7, wrong_value=0.1),
        *shares(4, "face_3", accuracy=0.9, numbers_read=0.9, old_rule=0.0, wrong_value=0.0),
    )
    splits = Splits(Split("id", "ID"), Split("ood", "OOD"))
    measured = lecture.forgotten(table, splits)
    assert list(measured.index) == ["ID", "OOD"] and list(measured["accuracy"]) == [4, 8], "the peak and the end"
    assert measured.loc["OOD", "numbers_read"].tolist() == [90, 20]
    assert measured.loc["ID", "old_rule"].isna().all(), "where the rule is that of SFT, it is the accuracy"
    of_id, of_ood = lecture.wrong_answers(table, splits).split("; ")
    assert of_id.endswith("in **ID** 20 more are right")
    assert "40 fewer are right: 70 fewer name the hand's numbers" in of_ood
    assert "20 more are right by the rule of SFT" in of_ood
    assert "wrong value" not in of_ood, "of which there are fewer"


def test_where_nothing_is_forgotten_it_is_said():
    rising = (shares(t, s, accuracy=t / 10, wrong_value=1 - t / 10) for t in (0, 4, 8) for s in ("id", "ood"))
    table, splits = (
        rows(*(row for of_split in rising for row in of_split)),
        Splits(Split("id", "ID"), Split("ood", "OOD")),
    )
    assert lecture.wrong_answers(table, splits) == "OOD is at its highest at the end: nothing is forgotten there."
    assert list(lecture.forgotten(table, splits)["accuracy"]) == [8]


def test_a_task_without_these_measures_says_less():
    right = {0: 0.0, 4: 0.5, 8: 0.1}
    found = (shares(t, s, accuracy=v, wrong_value=1 - v) for t, v in right.items() for s in ("id", "ood"))
    table = rows(*(row for of_split in found for row in of_split))
    said = lecture.wrong_answers(table, Splits(Split("id", "ID"), Split("ood", "far")))
    assert "From the far peak (step 4)" in said and "40 more have a wrong value" in said and "read" not in said
    own = lecture.wrong_answers(table, Splits(Split("id", "ID"), Split("ood", "far")), {"wrong_value": "more err"})
    assert own == said.replace("more have a wrong value (arithmetic)", "more err")


def test_sentences_on_rotation(results):
    measurements, splits = results.table("measurements"), get_task("general_points").splits
    tables = {stage: rotation_and_accuracy(measurements, stage, splits) for stage in ("sft", "rl")}
    assert "with rotation is -" in lecture.rotation_sentence(tables["sft"], "sft", splits).data
    assert "OOD gain" in lecture.rotation_sentence(tables["rl"], "rl", splits).data
    assert "FSDP" in lecture.rotation_sentence(tables["sft"].iloc[:0], "sft", splits).data


def test_recovery_is_in_percent_beside_the_start():
    table = lecture.recovery_table(
        rows(
            *(("sft", "sft", 0, t, s, "ood", "accuracy", v, 9) for t, s, v in ((4, 1, 0.2), (4, 2, 0.4), (8, 1, 0.1))),
            ("sft", "sft", 0, 4, 1, "id", "accuracy", 0.6, 9),
            *(("rl", arm, 4, 80, 1, "ood", "accuracy", v, 9) for arm, v in (("rl", 0.5), ("sft_continued", 0.45))),
        ),
        Splits(Split("id", "ID"), Split("ood", "far")),
    )
    assert list(table.index) == [("far", 4), ("ID", 4)] and list(table) == ["start", "rl", "sft_continued"]
    assert table.loc["far", 4].tolist() == [30, 50, 45] and table.loc[("ID", 4), "start"] == 60


def test_of_runs_that_differ_in_their_seeds_alone_the_one_with_most_is_shown():
    outputs = CHECKOUT / "outputs"
    runs = lecture.one_run_each(path.parent for path in sorted(outputs.glob("*/scorecard.json")))
    assert [run.folder.name for run in runs.values()] == ["navigation-seeds", "smollm2-cpu", "tiny-seeds"]
    assert "tiny-seeds: general_points, tiny (5 seeds)" in runs
