"""Rules that choose a checkpoint, on paths whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from oodlib.analysis.selection import (
    NULL,
    RULES,
    by_rule,
    checkpoints,
    choices,
    comparable,
    elbow,
    first_minimum,
    paths,
    regrets,
    rule_table,
    training_path,
)
from oodlib.cli import app
from oodlib.config import CHECKOUT
from oodlib.io import COLUMNS, write_json
from oodlib.models.loading import load_weights
from oodlib.models.sources import model_folder
from oodlib.tasks import get_task

SPLITS = get_task("general_points").splits
STEPS = [0, 10, 40, 100]
PATH = pd.DataFrame(
    {
        "step": STEPS,
        "id_loss": [9.0, 2.0, 2.5, 1.0],
        "id_accuracy": [0.0, 0.4, 0.6, 0.5],
        "kl_from_base": [0.0, 5.0, 6.0, 7.0],
        "angle": [0.0, 0.1, 0.4, 0.5],
        "effective_rank": [0.0, 3.0, 9.0, 8.0],
        "ood": [0.0, 0.6, 0.5, 0.1],
    }
)
WANTED = {
    "last": 100,
    "lowest ID loss": 100,
    "first minimum of the ID loss": 10,
    "highest ID accuracy": 40,
    "10% of the steps": 10,
    "elbow of the KL from the base": 10,
    "elbow of the angle": 40,
    "highest effective rank": 40,
}


def test_each_rule_keeps_what_it_says():
    assert choices(PATH) == WANTED
    assert set(WANTED) == {rule.label for rule in RULES}
    assert choices(PATH.sample(frac=1, random_state=0)) == WANTED, "in any order"


def test_a_rule_without_its_columns_is_left_out():
    assert set(choices(PATH[["step"]])) == {"last", "10% of the steps"}
    assert choices(PATH.assign(id_loss=[9.0, 2.0, 1.0, np.nan]))["lowest ID loss"] == 40, "of those that have one"
    assert "elbow of the angle" not in choices(PATH.assign(angle=np.nan))
    with pytest.raises(ValueError, match="no checkpoint to choose"):
        choices(PATH[:1])


def test_minima_and_elbows():
    assert first_minimum(np.array([3.0, 2.0, 1.0])) == 2 and first_minimum(np.array([1.0, 2.0, 0.0])) == 0
    assert elbow(np.array([5]), np.array([1.0])) == 0
    assert elbow(np.array([1, 2, 3, 4]), np.array([1.0, 2.0, 2.1, 2.2])) == 1
    assert elbow(np.array([10, 20, 120]), np.array([1.0, 2.0, 3.0])) == 1, "slopes are a step"


def table(condition=None, seed=3, shift=0.0):
    names = {"id_loss": ("id", "loss"), "id_accuracy": ("id", "accuracy"), "ood": ("ood", "accuracy"),
             "angle": ("weights", "rotation")}  # fmt: skip
    rows = [
        ("sft", "sft", 0, row["step"], seed, *names[column], row[column] + shift * (column == "ood") * row["step"], 9)
        for _, row in PATH.iterrows()
        for column in names
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame if condition is None else frame.assign(condition=condition)


def test_regret_is_what_is_missing_to_the_peak():
    found = regrets(paths(table(), SPLITS)).set_index("rule")["regret"]
    assert found["last"] == pytest.approx(0.5) and found["first minimum of the ID loss"] == 0
    assert found["highest ID accuracy"] == pytest.approx(0.1)
    assert "elbow of the KL from the base" not in found


def test_regrets_are_means_over_conditions_with_intervals_over_seeds():
    many = pd.concat([table(c, s, 0.0001 * s) for c in ("a", "b") for s in (1, 2, 3)])
    found = by_rule(regrets(paths(many, SPLITS)))
    assert found["last"].n == 3 and found["last"].low < found["last"].value < found["last"].high
    assert list(found)[-1] in ("last", "lowest ID loss") and found["10% of the steps"].value == 0
    assert next(iter(found.values())).value == 0
    assert found[NULL].value == 0, "the first is the best here, by chance"


def test_rules_are_compared_on_the_paths_on_which_all_of_them_chose():
    angles = pd.concat([table("a", s) for s in (1, 2)])
    without = table("b", 1, 0.004)
    without = without[without["metric"] != "rotation"]
    found = regrets(paths(pd.concat([angles, without]), SPLITS))
    assert set(comparable(found)["condition"]) == {"a"} and by_rule(found)["last"].n == 2
    drifted = angles[angles["metric"] == "rotation"].assign(stage="drift", metric="angle", value=[0, 0.5, 0.6, 0.7] * 2)
    moved = paths(pd.concat([angles, drifted]), SPLITS)["a", 1]
    assert moved["angle"].tolist() == [0, 0.5, 0.6, 0.7], "drift's own, where it was measured"
    text = rule_table(found).loc["highest ID accuracy"]
    assert text["OOD points below the peak"].startswith("10.0") and text["ID points below the best"] == "0.0"
    assert text["steps chosen"] == "40: 100%"


# ---- anybody's checkpoints -------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path):
    """Three checkpoints of a Trainer that evaluated, ever farther from the tiny base."""
    base, rng = load_weights(model_folder("tiny")), np.random.default_rng(0)
    noise = {name: torch.tensor(rng.normal(size=w.shape), dtype=w.dtype) * w.std() for name, w in base.items()}
    for step, size in ((10, 0.1), (20, 0.2), (30, 0.3)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file(
            {name: (w + size * noise[name]).contiguous() for name, w in base.items()}, folder / "model.safetensors"
        )
        log = [{"step": s, "eval_loss": abs(s - 20)} for s in range(10, step + 1, 10)]
        write_json(folder / "trainer_state.json", {"log_history": [*log, {"step": step, "loss": 1.0}]})
    return tmp_path


def call(*words):
    return CliRunner().invoke(app, ["select", *map(str, words)], env={"COLUMNS": "200", "TERM": "dumb"})


def test_checkpoints_of_a_trainer_are_chosen_by_what_it_logged_and_by_their_weights(training):
    path = training_path(checkpoints([training]), "tiny")
    assert path["step"].tolist() == [10, 20, 30] and path["id_loss"].tolist() == [10, 0, 10]
    assert path["angle"].is_monotonic_increasing and (path["effective_rank"] > 10).all()
    assert choices(path)["lowest ID loss"] == 20
    result = call(training, "--base", "tiny")
    assert result.exit_code == 0 and "elbow of the angle" in result.output and "tiny-seeds" in result.output
    alone = call(*(training / f"checkpoint-{step}" for step in (30, 10)))
    assert alone.exit_code == 0 and "elbow of the angle" not in alone.output


def test_a_run_s_checkpoints_are_chosen_seed_by_seed():
    result = call(CHECKOUT / "outputs" / "tiny")
    assert result.exit_code == 0 and "(seed" in result.output and " here " in result.output


def test_accuracy_of_answers_comes_before_that_of_tokens_and_other_folders_are_no_checkpoints(training, tmp_path):
    log = [
        {"step": step, "eval_mean_token_accuracy": step / 100, "eval_accuracy": 1 - step / 100} for step in (10, 20, 30)
    ]
    write_json(training / "checkpoint-30" / "trainer_state.json", {"log_history": log})
    (training / "logs-3").mkdir()
    named = training.rename(tmp_path.parent / f"{tmp_path.name}-llama-3")
    found = checkpoints([named])
    assert list(found) == [10, 20, 30] and choices(training_path(found))["highest ID accuracy"] == 10


def test_adapters_stand_on_the_base_that_is_given(tmp_path):
    name = "model.layers.0.self_attn.q_proj"
    (tmp_path / "base").mkdir()
    save_file({f"{name}.weight": torch.randn(8, 8)}, tmp_path / "base" / "model.safetensors")
    for step in (10, 20):
        folder = tmp_path / f"run/checkpoint-{step}"
        folder.mkdir(parents=True)
        low = {f"base_model.model.{name}.lora_{p}.weight": torch.randn(s) for p, s in (("A", (2, 8)), ("B", (8, 2)))}
        save_file(low, folder / "adapter_model.safetensors")
        about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/else"}
        write_json(folder / "adapter_config.json", about)
    result = call(tmp_path / "run", "--base", tmp_path / "base")
    assert result.exit_code == 0 and "elbow of the angle" in result.output


def test_an_old_log_in_a_later_checkpoint_counts_for_nothing_and_is_named(training):
    first = {"log_history": [{"step": 10, "eval_loss": 1.0}]}
    write_json(training / "checkpoint-10" / "trainer_state.json", first)
    (training / "checkpoint-20" / "trainer_state.json").unlink()
    log = [{"step": 10, "eval_loss": 5.0}, {"step": 20, "eval_loss": 2.0}, {"step": 30, "eval_loss": float("nan")},
           {"step": 40, "eval_loss": 0.1}]  # fmt: skip
    write_json(training / "checkpoint-30" / "trainer_state.json", {"log_history": log})
    remarks = {}
    path = training_path(checkpoints([training]), remarks=remarks)
    assert path["id_loss"].tolist()[:2] == [1, 2] and np.isnan(path["id_loss"][2])
    assert choices(path)["lowest ID loss"] == 10
    said = remarks[str(training / "checkpoint-30")]
    assert "5 in its log, 1 in that of an earlier" in said["id_loss of step 10"] and said["id_loss"] == "nan: not used"
    assert "id_loss of step 10: 5 in its log" in " ".join(call(training).output.split())


def test_what_the_reader_of_a_checkpoint_leaves_out_is_said_and_escapes_are_shown_as_such(training):
    file = training / "checkpoint-20" / "model.safetensors"
    save_file({**load_file(file), "model.layers.0.\x1b[31mx.weight": torch.ones(2, 3, 4)}, file)
    save_file({"x": torch.ones(1)}, training / "checkpoint-30" / "other.safetensors")
    result = call(training, "--base", "tiny")
    assert result.exit_code == 0 and "other.safetensors: not read" in result.output
    assert "\x1b" not in result.output and "31mx" in result.output


def test_what_cannot_be_chosen_from_is_one_line(training, tmp_path):
    (tmp_path / "empty").mkdir()
    state = training / "checkpoint-20" / "trainer_state.json"
    for content in (
        [1],
        {"log_history": [1]},
        {"log_history": [{"step": 10, "eval_loss": "x"}]},
        {"log_history": [{"step": 10, "eval_accuracy": True}]},
        {"log_history": None},
    ):
        write_json(state, content)
        result = call(training)
        assert result.exit_code == 2 and "trainer_state.json" in result.output, result.output
    write_json(state, {})
    for words, said in (
        ((tmp_path / "empty",), "holds no checkpoints"),
        ((training / "checkpoint-10", tmp_path / "empty"), "empty is no checkpoint"),
        ((tmp_path / "nowhere-5",), "is no folder"),
        ((training, "--base", "nowhere"), "nowhere"),
        ((CHECKOUT / "outputs" / "tiny", "--base", "tiny"), "--base goes with checkpoints"),
    ):
        result = call(*words)
        assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output, result.output
