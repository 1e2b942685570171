"""Configs: what is in params/ is valid; what is wrong is one short sentence that names it."""

import pytest
import yaml

from oodlib.config import PARAMS, Config, load_config, preset_from, config_names


@pytest.mark.parametrize("name", config_names())
def test_every_preset_in_params_is_valid_and_names_itself(name):
    preset = load_config(name)
    assert config.preset == name
    assert config.folder().name == name
    filed = yaml.safe_load((PARAMS / f"{name}.yaml").read_text())
    assert set(filed) <= set(Config.model_fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft_step": 3}, ["sft_step", "sft_steps"]),
        ({"sft.steps": "many"}, ["sft_steps", "many", "integer"]),
        ({"sft.steps": 0}, ["sft_steps", "0", "greater than or equal to 1"]),
        ({"sft.learning_rate": -1.0}, ["sft_learning_rate", "-1.0", "greater than 0"]),
        ({"sft.schedule": "step"}, ["sft_schedule", "step", "cosine"]),
        ({"rl.algorithm": "dpo"}, ["rl_algorithm", "dpo", "grpo", "rloo", "ppo"]),
        ({"rl.algorithm": "rloo", "rl.attempts": 3}, ["rloo", "3", "grpo", "ppo"]),
        ({"rl.algorithm": "ppo", "rl.kl": 0.1}, ["rl_kl", "ppo"]),
        ({"eval.attempts": 6}, ["verify_turns", "6", "less than or equal to 5"]),
        ({"sft.mitigation": "prayer"}, ["prayer", "rpsft"]),
        ({"rl.baselines": ["magic"]}, ["magic", "sft_continued"]),
        ({"rl.starts": [7]}, ["rl_from", "7", "sft_checkpoints"]),
        ({"rl.steps": 3}, ["rl_steps", "3", "rl_updates_per_batch"]),
        ({"sft.checkpoints": [0, 5]}, ["sft_checkpoints", "24"]),
        ({"task": "chess"}, ["chess", "general_points"]),
        ({"prompt_style": "haiku"}, ["haiku", "compact", "chat"]),
        ({"surgery.shares": [1.5]}, ["surgery_shares", "1.5", "less than or equal to 1"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"machine": {"lunch": "ddp"}}, ["machine", "lunch"]),
        ({"sft.options": {"weight_decai": 0.1}}, ["sft_options", "weight_decai", "weight_decay"]),
        ({"sft.options": {"learning_rate": 0.1}}, ["sft_options", "learning_rate", "preset"]),
        ({"rl.options": {"loss_tipe": 5}}, ["rl_options", "loss_tipe", "loss_type"]),
        ({"peft": {"rank": 4}}, ["peft", "rank"]),
        ({"peft": {"r": 4}, "sft.mitigation": "rpsft"}, ["peft", "sft_remedy"]),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(changes, words):
    with pytest.raises(ValueError) as caught:
        load_config("smoke", {**changes})
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 1000


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'nope'.*smoke.*tiny"):
        load_config("nope")


def test_a_file_that_holds_no_parameters(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("just words")
    with pytest.raises(ValueError, match="no parameters"):
        load_config(path)


def test_a_notebook_s_variables_make_a_preset():
    notebook = {"preset": "smoke", "seed": 3, "sft.steps": None, "np": pytest, "_dh": ["x"], "In": ["y"], "f": print}
    assert preset_from(notebook).seed == 3
    with pytest.raises(ValueError, match="'sede'"):
        preset_from({**notebook, "sede": 4})
    assert preset_from({**notebook, "mine": 4}, ignore_unknown=True).seed == 3


def test_folders_keep_different_runs_apart(tmp_path):
    plain = load_config("smoke")
    assert load_config("smoke", {"seed": 3}).folder().name == "smoke-seed3"
    other = load_config("smoke", {"sft.learning_rate": 2e-3}).folder()
    assert other != plain.folder() and other.name.startswith("smoke-")
    assert load_config("smoke", {"machine.jobs": 1, "machine.eval_batch_size": 7}).folder() == plain.folder()
    assert load_config("smoke", {"out": str(tmp_path)}).folder() == tmp_path
