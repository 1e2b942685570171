"""oodlib.spectral.callback in a real trainer: what it writes is what comparing the checkpoints afterwards gives."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from oodlib.models.loading import load_model, load_weights
from oodlib.models.sources import model_folder
from oodlib.spectral import RotationCallback, compare
from oodlib.spectral.callback import COLUMNS
from oodlib.training.trainer import fit, settings, supervised

BASE = model_folder("tiny")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def trainer(folder, steps=4, lora=False, **options):
    model, tokenizer = load_model(BASE)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"]))
    data = Dataset.from_dict({"prompt": ["4,A,2,J"] * 16, "completion": ["(4+2)*1+10"] * 16})
    return supervised(
        model, tokenizer, data, settings(folder, 0, steps, 1e-2, per_device_train_batch_size=4, **options)
    )


def expected(name, folder, k):
    found = compare(load_weights(BASE)[name], load_weights(folder)[name], k)
    return {"angle_left": found.angles_left.mean(), "angle_right": found.angles_right.mean(),
            "value_change": found.relative_change[:k].mean()}  # fmt: skip


def test_more_measures_are_chosen_by_name_and_are_what_the_checkpoints_show(tmp_path):
    mine = trainer(tmp_path / "run", bf16=False)
    chosen = ["change_ratio", "intruders", "unchanged", "unchanged_bfloat16", "kl"]
    prompts = ["J = 10 Q = 10 K = 10 ; cards 4 A 2 J ; as cards numbers formula :\n", "4,A,2,J"]
    before = torch.get_rng_state()
    callback = RotationCallback(tmp_path / "a.parquet", every=2, modules=("v_proj",), measures=chosen, prompts=prompts)
    callback._ask(mine.model, mine.processing_class)
    assert torch.equal(before, torch.get_rng_state()), "training must draw what it would have drawn"
    callback.attach(mine)
    log = fit(mine, tmp_path / "run", [2, 4])
    table = pd.read_parquet(tmp_path / "a.parquet").set_index(["step", "matrix", "metric"])["value"]
    assert set(table.index.unique("metric")) == set(chosen)
    old, new = load_weights(BASE), load_weights(tmp_path / "run" / "checkpoint-4")
    for name in set(table.index.unique("matrix")) - {""}:
        change = (new[name].double() - old[name].double()).abs()
        assert table[4, name, "unchanged"] == pytest.approx(float((change <= 1e-5).double().mean()))
        same = (new[name].bfloat16() == old[name].bfloat16()).double().mean()
        assert table[4, name, "unchanged_bfloat16"] == pytest.approx(float(same))
        U, V = (torch.linalg.svd(w[name].double(), full_matrices=False)[0] for w in (old, new))
        k = round(0.2 * U.shape[1])
        wanted = float(((U.T @ V[:, :k]).abs().amax(0) < 0.5).double().mean())
        assert table[4, name, "intruders"] == pytest.approx(wanted)
    after, _ = load_model(tmp_path / "run" / "checkpoint-4")
    start, _ = load_model(BASE)

    def likely(model):
        ids = [(torch.tensor([[*a, *s]]), len(a)) for a, s in callback._asked]
        with torch.no_grad():
            log_p = [model(i).logits[0, n - 1 : -1].log_softmax(-1).gather(1, i[0, n:, None]).sum() for i, n in ids]
        return torch.stack(log_p)

    assert table[4, "", "kl"] == pytest.approx(float((likely(start) - likely(after)).mean()), rel=1e-4)
    assert table[4, "", "kl"] != 0 and any("rotation/start/kl" in row for row in mine.state.log_history), log


def test_measures_without_spectra_decompose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("oodlib.spectral.callback.spectrum", None)
    mine = trainer(tmp_path / "run")
    RotationCallback(tmp_path / "a.parquet", every=2, measures=["unchanged"]).attach(mine)
    fit(mine, tmp_path / "run", [4])
    assert pd.read_parquet(tmp_path / "a.parquet")["value"].between(0, 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ["angle"]}, r"'angle' is none; a list of these: angle_left.*kl"),
        ({"measures": "kl"}, "'kl' is none; a list"),
        ({"measures": []}, "is none; a list"),
        ({"measures": ["kl"]}, "prompts and the measure kl go together"),
        ({"prompts": ["4,A"]}, "prompts and the measure kl go together"),
    ],
)
def test_measures_that_are_none_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        RotationCallback("a.parquet", **options)


def test_it_measures_what_the_checkpoints_show(tmp_path):
    mine = trainer(tmp_path / "run")
    callback = RotationCallback(tmp_path / "rotation.parquet", every=2, modules=("v_proj", "up_proj"), k=3)
    callback.attach(mine)
    log = fit(mine, tmp_path / "run", [2, 4])
    table = pd.read_parquet(tmp_path / "rotation.parquet")
    assert list(table.columns) == COLUMNS and sorted(table["step"].unique()) == [2, 4]
    assert set(table["module"]) == {"v_proj", "up_proj"} and set(table["reference"]) == {"start"}
    for step in (2, 4):
        for name in ("model.layers.0.self_attn.v_proj.weight", "model.layers.3.mlp.up_proj.weight"):
            rows = table[(table["step"] == step) & (table["matrix"] == name)].set_index("metric")["value"]
            for metric, value in expected(name, tmp_path / "run" / f"checkpoint-{step}", 3).items():
                assert rows[metric] == pytest.approx(value, abs=1e-6)
    logged = [row for row in mine.state.log_history if "rotation/start/angle_left" in row]
    assert [row["step"] for row in logged] == [2, 4] and len(log) == 4
    mean = table[(table["step"] == 4) & (table["metric"] == "angle_left")]["value"].mean()
    assert logged[-1]["rotation/start/angle_left"] == pytest.approx(mean)


def test_against_a_saved_checkpoint_and_after_an_interruption(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    def callback():
        return RotationCallback(tmp_path / "rotation.parquet", every=1, k=2, start=BASE, references={"base": "tiny"})

    cut = trainer(tmp_path / "run")
    callback().attach(cut)
    cut.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        fit(cut, tmp_path / "run", [2, 4])
    again = trainer(tmp_path / "run")
    callback().attach(again)
    fit(again, tmp_path / "run", [2, 4])
    table = pd.read_parquet(tmp_path / "rotation.parquet")
    assert not table.duplicated(["step", "reference", "matrix", "metric"]).any()
    assert sorted(table["step"].unique()) == [1, 2, 3, 4] and set(table["reference"]) == {"start", "base"}
    values = table.pivot_table(index=["step", "matrix", "metric"], columns="reference", values="value")
    np.testing.assert_array_equal(values["start"], values["base"])


def test_adapters_are_counted_in(tmp_path):
    mine = trainer(tmp_path / "run", lora=True)
    RotationCallback(tmp_path / "rotation.parquet", every=4, k=3, modules=("v_proj", "o_proj")).attach(mine)
    mine.train()
    table = (
        pd.read_parquet(tmp_path / "rotation.parquet").query("metric == 'change_ratio'").set_index("matrix")["value"]
    )
    merged = mine.model.merge_and_unload().state_dict()
    for name, before in load_weights(BASE).items():
        if name in table.index:
            moved = float((merged[name] - before).norm() / before.norm())
            assert table[name] == pytest.approx(moved, rel=1e-3, abs=1e-7)
            assert (moved > 0) == ("v_proj" in name)
    assert len(table) == 8


def test_it_measures_where_training_stops_early_and_begins_anew_each_time(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    mine = trainer(tmp_path / "run")
    RotationCallback(tmp_path / "rotation.parquet", every=2, k=2, modules=("q_proj",)).attach(mine)
    mine.add_callback(Stop())
    for _ in range(2):
        mine.train()
        table = pd.read_parquet(tmp_path / "rotation.parquet")
        assert sorted(table["step"].unique()) == [2, 3]
        assert not table.duplicated(["step", "matrix", "metric"]).any()


def test_weights_that_are_no_numbers_any_more_stop_nothing(tmp_path):
    mine = trainer(tmp_path / "run", steps=1)
    callback = RotationCallback(tmp_path / "rotation.parquet", modules=("q_proj",)).attach(mine)
    mine.train()
    with torch.no_grad():
        mine.model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    callback.measure(mine.model, 2)
    last = pd.read_parquet(tmp_path / "rotation.parquet").query("step == 2")
    assert last[last["layer"] == 0]["value"].isna().all() and last[last["layer"] == 1]["value"].notna().all()


def test_merged_and_two_adapters_are_counted_once(tmp_path):
    model, _ = load_model(BASE)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["v_proj"]))
    model.add_adapter("b", LoraConfig(r=4, target_modules=["o_proj"]))
    model.base_model.set_adapter(["default", "b"])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    callback = RotationCallback(tmp_path / "a.parquet", modules=("v_proj", "o_proj"))
    apart = {name: weight.detach().clone() for name, _, weight in callback.matrices(model)}
    model.merge_adapter(["default", "b"])
    together = {name: weight for name, _, weight in callback.matrices(model)}
    assert set(apart) == set(together) and len(apart) == 8
    for name, weight in apart.items():
        torch.testing.assert_close(together[name], weight, rtol=1e-4, atol=1e-5)
        assert not torch.equal(weight, load_weights(BASE)[name])


def test_what_it_cannot_measure_is_refused(tmp_path):
    model, _ = load_model(BASE)
    callback = RotationCallback(tmp_path / "a.parquet", modules=("v_proj",))
    model.model.layers[0].self_attn.v_proj.weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.v_proj\.weight is sharded"):
        list(callback.matrices(model))
    quantised = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    model.model.layers[0].self_attn.v_proj.weight = quantised
    with pytest.raises(ValueError, match=r"is quantised \(torch.int8\)"):
        list(callback.matrices(model))
    mine = trainer(tmp_path / "run")
    RotationCallback(tmp_path / "a.parquet", modules=("query",)).attach(mine)
    with pytest.raises(ValueError, match="no weight matrix of the model matches modules query"):
        mine.train()


@pytest.mark.parametrize("every", [0, -1, True, 1.5, "ab", [], [1, -1], ["x"]])
def test_updates_that_are_none_are_refused_at_once(every):
    with pytest.raises(ValueError, match="every must be a whole number from 1, or several updates, got "):
        RotationCallback("a.parquet", every=every)


def test_a_file_that_cannot_be_written_is_told_before_the_first_update(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "folder.parquet" / "precious").touch()
    (tmp_path / "file").touch()
    for file, said in (("folder.parquet", "is a folder"), ("file/a.parquet", "file")):
        with pytest.raises((ValueError, OSError), match=said):
            begun(RotationCallback(tmp_path / file, every=np.int64(2)), causal())
    assert (tmp_path / "folder.parquet" / "precious").exists()


@pytest.mark.parametrize("change", [lambda t: t.assign(more=1), lambda t: t[["step"]], lambda t: t.astype(str)])
def test_a_table_that_is_another_one_is_not_gone_on_with(tmp_path, change):
    file, model = tmp_path / "a.parquet", causal()
    model.save_pretrained(tmp_path / "start")
    callback = RotationCallback(file, start=tmp_path / "start")
    begun(callback, model).measure(model, 1)
    whole = pd.read_parquet(file)
    state = TrainerState(is_world_process_zero=True, global_step=1)
    callback.on_train_begin(None, state, TrainerControl(), model=model)
    pd.testing.assert_frame_equal(pd.read_parquet(file), whole)
    change(whole).to_parquet(file)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        callback.on_train_begin(None, state, TrainerControl(), model=model)


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="k 'all': allowed are"):
        RotationCallback(tmp_path / "a.parquet", k="all")
    mine = trainer(tmp_path / "run")
    RotationCallback(tmp_path / "a.parquet", references={"peak": "no-such-folder"}).attach(mine)
    with pytest.raises(ValueError, match="unknown checkpoint 'no-such-folder'"):
        mine.train()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.new_zeros(3, 4), r"NAME: shapes differ: \(64, 128\) and \(3, 4\)"),
        (lambda w: w.to(torch.int8), r"NAME: quantised in peak \(I8\)"),
        (lambda w: w / 0, "NAME: .* entries are (NaN|inf)"),
        (lambda w: None, "NAME: missing in peak"),
    ],
)
def test_a_reference_that_cannot_serve_is_refused_before_the_first_update(tmp_path, change, said):
    name, peak = "model.layers.1.self_attn.v_proj.weight", tmp_path / "peak"
    weights = load_file(BASE / "model.safetensors")
    wrong = change(weights.pop(name))
    peak.mkdir()
    save_file(weights if wrong is None else {**weights, name: wrong}, peak / "model.safetensors")
    mine = trainer(tmp_path / "run")
    RotationCallback(tmp_path / "a.parquet", modules=("v_proj",), references={"peak": peak}).attach(mine)
    with pytest.raises(ValueError, match=r"the reference 'peak' \(.*\): " + said.replace("NAME", re.escape(name))):
        mine.train()
    assert mine.state.global_step == 0


class Seen(TrainerCallback):
    """Keeps the weights of each step, as they are."""

    def __init__(self):
        self.states = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.states[state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}


class FirstIsBest(Trainer):
    def evaluate(self, *args, **kwargs):
        metrics = {"eval_loss": float(self.state.global_step)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@pytest.mark.parametrize("early", [False, True])
def test_a_row_holds_the_weights_of_its_step_though_the_best_are_loaded_at_the_end(tmp_path, early):
    model, seen = causal(), Seen()
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    options = {"max_steps": 6, "learning_rate": 1e-2, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    best = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "load_best_model_at_end": True}
    arguments = TrainingArguments(str(tmp_path), **options, **best, metric_for_best_model="eval_loss")
    data = [{"input_ids": ids, "labels": ids} for ids in torch.arange(64).reshape(8, 8) % 32]
    mine = FirstIsBest(model, arguments, train_dataset=data, eval_dataset=data)
    RotationCallback(tmp_path / "rotation.parquet", every=100, modules=("v_proj",), k=3).attach(mine)
    mine.add_callback(seen)
    if early:  # it asks for the end when ours has seen the step already
        mine.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    mine.train()
    last, name = mine.state.global_step, "model.layers.1.self_attn.v_proj.weight"
    assert mine.state.best_global_step == 1 and last == (3 if early else 6)
    assert torch.equal(model.state_dict()[name], seen.states[1][name])
    table = pd.read_parquet(tmp_path / "rotation.parquet")
    assert set(table["step"]) == {last}
    row = table[(table["matrix"] == name) & (table["metric"] == "change_ratio")]["value"].item()
    moved = (seen.states[last][name].double() - start[name].double()).norm() / start[name].double().norm()
    assert row == pytest.approx(float(moved), rel=1e-9)


SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 32}  # fmt: skip


def causal(kind="llama", **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **options), dtype=torch.float32)


def begun(callback, model):
    """The callback as a training of this model begins, in one that is not resumed."""
    callback.on_train_begin(None, TrainerState(is_world_process_zero=True), TrainerControl(), model=model)
    return callback


def ratios(callback, model):
    callback.measure(model, 1)
    table = pd.read_parquet(callback.file).query("metric == 'change_ratio'")
    return table.set_index("matrix")["value"].to_dict()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["down_proj"]),
        IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(r=2, target_modules=["q_proj"]),
        OFTConfig(r=2, oft_block_size=0, target_modules=["o_proj"]),
    ],
    ids=lambda config: f"{config.peft_type.value} {getattr(config, 'use_dora', '')}",
)
def test_every_kind_of_adapter_that_can_be_merged_is_counted_in_exactly(tmp_path, config):
    before = causal().double().state_dict()
    model = get_peft_model(causal(), config)
    callback = begun(RotationCallback(tmp_path / "a.parquet"), model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    values, after = ratios(callback, model), copy.deepcopy(model).double().merge_and_unload().state_dict()
    assert set(values) == {name for name in before if "_proj" in name}
    changed = {name: float((after[name] - before[name]).norm() / before[name].norm()) for name in values}
    assert values == pytest.approx(changed, rel=1e-5, abs=1e-9) and max(changed.values()) > 0.001


def test_a_bfloat16_adapter_is_added_in_float64(tmp_path):
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"])
    model = get_peft_model(causal().bfloat16(), config, autocast_adapter_dtype=False)
    callback, layer = begun(RotationCallback(tmp_path / "a.parquet"), model), model.base_model.model.model.layers[1]
    torch.nn.init.normal_(layer.self_attn.q_proj.lora_B["default"].weight, std=1e-3)
    A, B = (getattr(layer.self_attn.q_proj, f"lora_{part}")["default"].weight.double() for part in "AB")
    change = float((B @ A).norm() / layer.self_attn.q_proj.base_layer.weight.double().norm())
    assert ratios(callback, model)["model.layers.1.self_attn.q_proj.weight"] == pytest.approx(change, rel=1e-9)


def test_each_expert_of_a_stack_is_measured_and_found_in_a_folder(tmp_path):
    model = causal("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, head_dim=4)
    model.save_pretrained(tmp_path / "start")
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    callback = begun(RotationCallback(tmp_path / "a.parquet", start=tmp_path / "start"), model)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    with torch.no_grad():
        model.get_parameter(name)[2] += 0.1
    values = ratios(callback, model)
    assert sum("experts" in matrix for matrix in values) == 2 * 2 * 4
    assert {matrix for matrix, value in values.items() if value} == {f"{name}[2]"}
    assert values[f"{name}[2]"] == pytest.approx(float(0.1 * 256**0.5 / state[name][2].norm()), rel=1e-4)


def test_a_square_matrix_of_a_reference_that_is_kept_the_other_way_round_is_refused(tmp_path):
    model = causal("gpt2", n_embd=16, n_layer=1, n_head=2)
    turned = {name: w.T.contiguous() if "c_" in name and w.ndim == 2 else w.clone()
              for name, w in model.state_dict().items() if name != "lm_head.weight"}  # fmt: skip
    (tmp_path / "start").mkdir()
    save_file(turned, tmp_path / "start" / "model.safetensors")
    callback = RotationCallback(tmp_path / "a.parquet", start=tmp_path / "start", modules=["attn.c_proj"])
    with pytest.raises(ValueError, match=r"c_proj\.weight: kept as \[in, out\] in one"):
        begun(callback, model)


def test_what_the_reader_of_a_reference_has_to_say_is_said(tmp_path):
    model = causal()
    model.save_pretrained(tmp_path / "start")
    save_file({"x": torch.ones(1)}, tmp_path / "start" / "other.safetensors")
    with pytest.warns(UserWarning, match=r"reference 'start' .*other\.safetensors: not read"):
        callback = begun(RotationCallback(tmp_path / "a.parquet", start=tmp_path / "start"), model)
    assert "not read" in callback.remarks["start: other.safetensors"]


def test_what_is_not_measured_is_named(tmp_path):
    model = causal()
    with pytest.warns(
        UserWarning, match=r"does not measure model\.embed_tokens\.weight: in no layer; lm_head\.weight: in"
    ):
        callback = begun(RotationCallback(tmp_path / "a.parquet"), model)
    assert set(callback.remarks) == {"model.embed_tokens.weight", "lm_head.weight"}
