"""Presets: what is in params/ is valid; what is wrong is one short sentence that names it."""

import pytest
import yaml

from oodlib.presets import PARAMS, Preset, load_preset, preset_from, preset_names


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_in_params_is_valid_and_names_itself(name):
    preset = load_preset(name)
    assert preset.preset == name
    assert preset.folder().name == name
    filed = yaml.safe_load((PARAMS / f"{name}.yaml").read_text())
    assert set(filed) <= set(Preset.model_fields)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft_step": 3}, ["sft_step", "sft_steps"]),
        ({"sft_steps": "many"}, ["sft_steps", "many", "integer"]),
        ({"sft_steps": 0}, ["sft_steps", "0", "greater than or equal to 1"]),
        ({"sft_learning_rate": -1.0}, ["sft_learning_rate", "-1.0", "greater than 0"]),
        ({"sft_schedule": "step"}, ["sft_schedule", "step", "cosine"]),
        ({"rl_algorithm": "dpo"}, ["rl_algorithm", "dpo", "grpo", "rloo", "ppo"]),
        ({"rl_algorithm": "rloo", "rl_turns": 3}, ["rloo", "3", "grpo", "ppo"]),
        ({"rl_algorithm": "ppo", "rl_kl": 0.1}, ["rl_kl", "ppo"]),
        ({"verify_turns": 6}, ["verify_turns", "6", "less than or equal to 5"]),
        ({"sft_remedy": "prayer"}, ["prayer", "rpsft"]),
        ({"rl_arms": ["magic"]}, ["magic", "sft_continued"]),
        ({"rl_from": [7]}, ["rl_from", "7", "sft_checkpoints"]),
        ({"rl_steps": 3}, ["rl_steps", "3", "rl_updates_per_batch"]),
        ({"sft_checkpoints": [0, 5]}, ["sft_checkpoints", "24"]),
        ({"task": "chess"}, ["chess", "general_points"]),
        ({"prompt_style": "haiku"}, ["haiku", "compact", "chat"]),
        ({"surgery_shares": [1.5]}, ["surgery_shares", "1.5", "less than or equal to 1"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"machine": {"lunch": "ddp"}}, ["machine", "lunch"]),
        ({"sft_options": {"weight_decai": 0.1}}, ["sft_options", "weight_decai", "weight_decay"]),
        ({"sft_options": {"learning_rate": 0.1}}, ["sft_options", "learning_rate", "preset"]),
        ({"rl_options": {"loss_tipe": 5}}, ["rl_options", "loss_tipe", "loss_type"]),
        ({"peft": {"rank": 4}}, ["peft", "rank"]),
        ({"peft": {"r": 4}, "sft_remedy": "rpsft"}, ["peft", "sft_remedy"]),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(changes, words):
    with pytest.raises(ValueError) as caught:
        load_preset("smoke", **changes)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 1000


def test_an_unknown_preset_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'nope'.*smoke.*tiny"):
        load_preset("nope")


def test_a_file_that_holds_no_parameters(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("just words")
    with pytest.raises(ValueError, match="no parameters"):
        load_preset(path)


def test_a_notebook_s_variables_make_a_preset():
    notebook = {"preset": "smoke", "seed": 3, "sft_steps": None, "np": pytest, "_dh": ["x"], "In": ["y"], "f": print}
    assert preset_from(notebook).seed == 3
    with pytest.raises(ValueError, match="'sede'"):
        preset_from({**notebook, "sede": 4})
    assert preset_from({**notebook, "mine": 4}, ignore_unknown=True).seed == 3


def test_folders_keep_different_runs_apart(tmp_path):
    plain = load_preset("smoke")
    assert load_preset("smoke", seed=3).folder().name == "smoke-seed3"
    other = load_preset("smoke", sft_learning_rate=2e-3).folder()
    assert other != plain.folder() and other.name.startswith("smoke-")
    assert load_preset("smoke", jobs=1, eval_batch_size=7).folder() == plain.folder()
    assert load_preset("smoke", out=str(tmp_path)).folder() == tmp_path
