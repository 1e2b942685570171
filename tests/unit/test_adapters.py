"""oodlib.models.adapters: an adapter is what PEFT makes of it, however its base was saved, or is refused by name."""

import copy
import json
import re
import shutil

import pytest
import torch
from peft import (
    FourierFTConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    ShiraConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from oodlib.models.adapters import merge
from oodlib.models.checkpoints import open_weights
from oodlib.models.pairs import pair_up

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
QV = ["q_proj", "v_proj"]


def llama(tied=False, **sizes):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}, tie_word_embeddings=tied))


def gpt2(square=False):
    inner = 32 if square else None
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_inner=inner, vocab_size=64, tie_word_embeddings=False)
    return GPT2LMHeadModel(config)


def qwen2():  # with biases
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False))


def trained(folder, model, config, dtype=torch.float32):
    """Saves a base and an adapter on it that is not zero; what PEFT makes of the two, in float64."""
    torch.manual_seed(0)
    model.apply(lambda m: hasattr(m, "reset_parameters") and m.reset_parameters())
    model.to(dtype).save_pretrained(folder / "base")
    model.name_or_path = str(folder / "base")
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    adapted.save_pretrained(folder / "adapter")
    merged = copy.deepcopy(adapted).double().merge_and_unload().state_dict()
    return {name.removeprefix("_orig_mod."): tensor for name, tensor in merged.items()}


def same(weights, expected, but=()):
    names = [name for name in weights.shapes if name not in but]
    assert len(names) > 8
    for name in names:
        torch.testing.assert_close(
            weights.tensor(name).double(), expected[name], rtol=1e-5, atol=1e-5
        )  # PiSSA: float32


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (llama, {"target_modules": QV, "use_rslora": True, "rank_pattern": {"v_proj": 2}}),
        (llama, {"target_modules": QV, "alpha_pattern": {r"model\.layers\.0\..*q_proj": 64, "v_proj": 3}}),
        (llama, {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
        (llama, {"target_modules": QV, "init_lora_weights": "pissa"}),
        (llama, {"target_modules": [*QV, "embed_tokens"]}),
        (llama, {"target_modules": [*QV, "embed_tokens"], "use_dora": True}),
        (llama, {"target_modules": QV, "modules_to_save": ["down_proj", "embed_tokens", "lm_head"]}),
        (llama, {"target_modules": QV, "trainable_token_indices": [3, 1]}),
        (qwen2, {"target_modules": QV, "lora_bias": True}),
        (qwen2, {"target_modules": QV, "bias": "all"}),
        (gpt2, {"target_modules": ["c_attn", "c_proj", "lm_head"]}),  # the flag that is saved is the last module's
        (gpt2, {"target_modules": ["lm_head", "c_proj"], "use_dora": True}),
        (lambda: gpt2(square=True), {"target_modules": ["c_fc", "c_proj"]}),
        (lambda: llama(vocab_size=32), {"target_modules": [*QV, "embed_tokens"]}),  # as many tokens as dimensions
        (lambda: llama(vocab_size=32), {"target_modules": [*QV, "embed_tokens"], "use_dora": True}),
        (lambda: torch.compile(llama(), backend="eager"), {"target_modules": QV}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else getattr(value, "__name__", ""),
)
def test_an_adapter_is_what_peft_makes_of_it(tmp_path, model, settings):
    expected = trained(tmp_path, getattr(m := model(), "_orig_mod", m), LoraConfig(r=4, lora_alpha=8, **settings))
    weights = open_weights(tmp_path / "adapter")
    same(weights, expected)
    base = open_weights(tmp_path / "base")
    assert sum(not torch.equal(weights.tensor(n).float(), base.tensor(n)) for n in base.shapes) >= 2


def test_base_and_change_are_added_in_float64(tmp_path):
    trained(tmp_path, llama().bfloat16(), LoraConfig(r=4, target_modules=QV), torch.bfloat16)
    name = "model.layers.1.self_attn.q_proj"
    low = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    A, B = (low[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    base = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"].double()
    assert torch.equal(open_weights(tmp_path / "adapter").tensor(f"{name}.weight"), base + 2 * (B @ A))


def test_merging_in_memory_rounds_once(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=QV, modules_to_save=["down_proj"])).bfloat16()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight) if "lora_B" in name or "modules_to_save" in name else None
    exact = copy.deepcopy(model).double().merge_and_unload().state_dict()
    merged = merge(model).state_dict()
    assert merged.keys() == exact.keys()
    assert all(torch.equal(merged[name], weight.to(torch.bfloat16)) for name, weight in exact.items())


EXTRAS = [
    (True, {"modules_to_save": ["lm_head"]}, "lm_head.weight", "the adapter's own: .*tied to the embedding"),
    (True, {"modules_to_save": ["embed_tokens"]}, None, None),
    (False, {"bias": "lora_only"}, None, None),
]


@pytest.mark.parametrize(("tied", "settings", "name", "remark"), EXTRAS)
def test_what_has_no_place_in_the_base_is_remarked_and_the_rest_is_read(tmp_path, tied, settings, name, remark):
    expected = trained(tmp_path, llama(tied), LoraConfig(r=4, target_modules=QV, **settings))
    weights, base = open_weights(tmp_path / "adapter"), open_weights(tmp_path / "base")
    same(weights, expected, but=[name])
    if name:
        assert name in weights.remarks and re.search(remark, weights.remarks[name])
    assert len(pair_up(base, weights)[0]) == 14


def test_lora_of_a_tied_head_and_new_tokens_are_remarked(tmp_path):
    trained(tmp_path, llama(), LoraConfig(r=4, target_modules=[*QV, "lm_head"], modules_to_save=["embed_tokens"]))
    state = load_file(tmp_path / "base" / "model.safetensors")
    del state["lm_head.weight"]
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:-2]
    save_file(state, tmp_path / "base" / "model.safetensors")
    base, weights = open_weights(tmp_path / "base"), open_weights(tmp_path / "adapter")
    pairs, remarks = pair_up(base, weights, ["*"])
    assert len(pairs) == 14 and remarks["model.embed_tokens.weight"] == "shapes differ: (62, 32) and (64, 32)"
    assert "does not hold it" in weights.remarks["lm_head.weight"]


PREFIXES = {  # where a base's tensors are, by how it was saved
    "compiled": lambda name: f"_orig_mod.{name}",
    "distributed": lambda name: f"module._orig_mod.{name}",
    "a model that sees, old names": lambda name: f"language_model.{name}",
    "a model that sees, new names": lambda name: name.replace("model.", "model.language_model.", 1),
    "without the family's prefix": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("saved", PREFIXES)
@pytest.mark.parametrize("trained_as", ["plain", "a model that sees, new names"])
def test_an_adapter_fits_its_base_however_it_was_saved(tmp_path, saved, trained_as):
    settings = {"target_modules": QV, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}, "modules_to_save": ["lm_head"]}
    expected = trained(tmp_path, llama(), LoraConfig(r=4, **settings))
    state = load_file(tmp_path / "base" / "model.safetensors")
    vision = {"vision_tower.encoder.layers.0.self_attn.q_proj.weight": torch.ones(32, 32)} if "sees" in saved else {}
    named = {PREFIXES[saved](name): tensor for name, tensor in state.items()}
    save_file({**named, **vision}, tmp_path / "base" / "model.safetensors")
    if trained_as != "plain":
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        outer = "base_model.model."
        save_file({outer + PREFIXES[trained_as](n.removeprefix(outer)): t for n, t in load_file(file).items()}, file)
    weights = open_weights(tmp_path / "adapter")
    for name, tensor in expected.items():
        torch.testing.assert_close(weights.tensor(PREFIXES[saved](name)).double(), tensor, rtol=1e-6, atol=1e-6)
    for name, tensor in vision.items():
        assert torch.equal(weights.tensor(name), tensor)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "of type IA3"),
        (LoHaConfig(r=2, target_modules=["q_proj"]), "of type LOHA"),
        (TrainableTokensConfig(token_indices=[1]), "of type TRAINABLE_TOKENS"),
        (LoraConfig(r=2, target_modules=QV, init_lora_weights="olora"), "LoRA with olora initialisation"),
        (LoraConfig(r=2, target_modules=QV, layer_replication=[[0, 2]]), "LoRA with layer_replication"),
    ],
)
def test_a_kind_that_cannot_be_added_is_refused_by_its_name(tmp_path, config, kind):
    trained(tmp_path, llama(), config)
    shutil.rmtree(tmp_path / "base")  # which is not even looked for
    with pytest.raises(ValueError, match=f"{kind}; only plain LoRA can be added"):
        open_weights(tmp_path / "adapter")


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["q_proj"]),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        LoHaConfig(r=2, target_modules=["q_proj"]),
        FourierFTConfig(n_frequency=8, target_modules=["q_proj"]),
        ShiraConfig(r=2, target_modules=["q_proj"]),
    ],
    ids=lambda config: config.peft_type.value,
)
def test_a_whole_model_with_an_adapter_of_any_kind_that_is_not_merged_is_refused(tmp_path, config):
    state = {name: tensor.clone() for name, tensor in get_peft_model(llama(), config).state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds an adapter that is not merged into its model"):
        open_weights(tmp_path)


@pytest.mark.parametrize("part", ["lora_a.weight", "lora_A.my-name.weight", "lora.up.weight", "lora_B_weight"])
def test_adapters_of_other_libraries_in_a_whole_model_are_refused_too(tmp_path, part):
    module = "model.layers.0.self_attn.q_proj"
    save_file(
        {f"{module}.weight": torch.ones(4, 4), f"{module}.{part}": torch.ones(2, 4)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match="holds an adapter that is not merged into its model"):
        open_weights(tmp_path)


def change(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_where_a_base_lies_is_said_and_a_missing_one_names_the_adapter(tmp_path):
    expected = trained(tmp_path, llama(), LoraConfig(r=4, target_modules=QV))
    change(tmp_path / "adapter", base_model_name_or_path="/home/someone/Llama-3.2-1B")
    with pytest.raises(ValueError, match=r"adapter .*adapter stands on '/home/someone/Llama-3.2-1B', .*--base"):
        open_weights(tmp_path / "adapter")
    same(open_weights(tmp_path / "adapter", adapter_base=tmp_path / "base"), expected)
    change(tmp_path / "adapter", base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"adapter .*adapter does not name its base: .*--base"):
        open_weights(tmp_path / "adapter")
    taken = open_weights(tmp_path / "adapter", open_weights(tmp_path / "base"))
    same(taken, expected)
    assert taken.remarks["base"].endswith(str(tmp_path / "base"))
    change(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match="stands on this one itself"):
        open_weights(tmp_path / "adapter")


def test_beside_merged_weights_the_adapter_s_own_file_is_read(tmp_path):
    expected = trained(tmp_path, llama(), LoraConfig(r=4, target_modules=QV))
    shutil.copy(tmp_path / "base" / "model.safetensors", tmp_path / "adapter")
    weights = open_weights(tmp_path / "adapter")
    same(weights, expected)
    assert "not read" in weights.remarks["model.safetensors"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"lora_alpha": "8"}, "lora_alpha = '8': expected a number"),
        ({"lora_alpha": 10**400}, "lora_alpha = 1000.*: expected a number"),
        ({"revision": 3}, "revision = 3: expected a name"),
        ({"alpha_pattern": {"q_proj(": 2}}, r"alpha_pattern 'q_proj\(': "),
        ({"alpha_pattern": [1]}, r"alpha_pattern = \[1\]: expected numbers by module"),
        ({"peft_type": None}, "is of another library"),
        ({"peft_type": None, "fine_tune_type": "lora"}, "is of mlx-lm"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path = 3: expected a name"),
    ],
)
def test_a_configuration_that_is_none_is_refused_with_its_file(tmp_path, settings, complaint):
    trained(tmp_path, llama(), LoraConfig(r=4, target_modules=QV))
    change(tmp_path / "adapter", **settings)
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{complaint}"):
        weights = open_weights(tmp_path / "adapter")
        weights.tensor("model.layers.0.self_attn.q_proj.weight")


def test_a_model_with_its_adapter_unmerged_in_one_file_is_refused(tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=4, target_modules=QV))
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors holds an adapter that is not merged"):
        open_weights(tmp_path)


# ---- adapters that PEFT's classes here do not make ---------------------------------------------------------

Q = "model.layers.0.self_attn.q_proj"


def low_rank(module, out=8, ins=8, name=""):
    parts = {"A": (2, ins), "B": (out, 2)}
    return {f"base_model.model.{module}.lora_{p}{name}.weight": torch.randn(shape) for p, shape in parts.items()}


@pytest.fixture
def saved(tmp_path):
    """Writes a base and an adapter on it from their tensors; the adapter's folder."""

    def make(base, adapter, **settings):
        for name, state, file in (("b", base, "model.safetensors"), ("a", adapter, "adapter_model.safetensors")):
            (tmp_path / name).mkdir()
            save_file(state, tmp_path / name / file)
        about = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "base_model_name_or_path": str(tmp_path / "b"),
            **settings,
        }
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(about))
        return tmp_path / "a"

    return make


def test_two_adapters_in_one_file_are_refused(saved):
    both = low_rank(Q, name=".default") | low_rank(Q, name=".reference")
    with pytest.raises(ValueError, match=r"more than one adapter .*default.*reference"):
        open_weights(saved({f"{Q}.weight": torch.randn(8, 8)}, both))


EMBEDDING = "base_model.model.model.embed_tokens."
NEW_ROWS = {
    "rows of new tokens": ({f"{EMBEDDING}token_adapter.trainable_tokens_delta": torch.randn(2, 8)}, "new rows"),
    "a grown head": (low_rank("lm_head", 18), "more rows"),
    "a grown embedding": (
        {f"{EMBEDDING}lora_embedding_A": torch.randn(2, 18), f"{EMBEDDING}lora_embedding_B": torch.randn(8, 2)},
        "more rows",
    ),
    "a convolution": (
        {
            "base_model.model.conv.lora_A.weight": torch.randn(2, 3, 4, 4),
            "base_model.model.conv.lora_B.weight": torch.randn(8, 2, 1, 1),
        },
        "a convolution",
    ),
}


@pytest.mark.parametrize("what", NEW_ROWS)
def test_what_the_base_has_no_room_for_is_remarked_and_the_rest_is_read(saved, what):
    extra, remark = NEW_ROWS[what]
    outer = {"model.embed_tokens.weight": torch.randn(16, 8), "lm_head.weight": torch.randn(16, 8)}
    base = {f"{Q}.weight": torch.randn(8, 8), **outer, "conv.weight": torch.randn(8, 3, 4, 4)}
    folder = saved(base, low_rank(Q) | extra, trainable_token_indices=[16, 17])
    weights = open_weights(folder)
    assert any(remark in text and "left out" in text for text in weights.remarks.values())
    for name, weight in base.items():
        assert torch.equal(weights.tensor(name).float(), weight) == (name != f"{Q}.weight")


def test_an_embedding_that_is_saved_whole_beside_its_new_rows_is_read(saved):
    whole, rows = torch.randn(18, 8), torch.randn(2, 8)
    base = {f"{Q}.weight": torch.randn(8, 8), "model.embed_tokens.weight": whole[:16].clone()}
    extra = {
        f"{EMBEDDING}token_adapter.trainable_tokens_delta": rows,
        f"{EMBEDDING}token_adapter.base_layer.weight": whole,
    }
    weights = open_weights(saved(base, low_rank(Q) | extra, trainable_token_indices=[16, 17]))
    assert (
        torch.equal(weights.tensor("model.embed_tokens.weight"), torch.cat([whole[:16], rows])) and not weights.remarks
    )


@pytest.mark.parametrize("piece", ["q_proj.qweight", "q_proj.W_q", "q_proj.weight_packed"])
def test_a_weight_that_the_base_does_not_hold_plainly_is_named_without_a_doubt_about_the_base(saved, piece):
    base = {f"model.layers.0.self_attn.{piece}": torch.ones(8, 8, dtype=torch.int32)}
    with pytest.raises(ValueError, match=rf"holds as .*{piece}, quantised") as refused:
        open_weights(saved(base, low_rank(Q)))
    assert "is that its base" not in str(refused.value)


def test_a_change_of_what_the_base_keeps_in_one_with_others_is_left_out_with_a_remark(saved):
    part = "model.layers.0.mlp.gate_proj"
    base = {f"{Q}.weight": torch.randn(8, 8), "model.layers.0.mlp.gate_up_proj.weight": torch.randn(16, 8)}
    weights = open_weights(saved(base, low_rank(Q) | low_rank(part)))
    assert "keeps it in one with others: left out" in weights.remarks[f"{part}.weight"]


def test_pissa_takes_nothing_out_of_an_embedding(tmp_path):
    settings = {"target_modules": [*QV, "embed_tokens"], "init_lora_weights": "pissa"}
    expected = trained(tmp_path, llama(), LoraConfig(r=4, lora_alpha=8, **settings))
    same(open_weights(tmp_path / "adapter"), expected)


def test_a_revision_of_the_base_is_looked_for(saved, monkeypatch):
    folder = saved({f"{Q}.weight": torch.randn(8, 8)}, low_rank(Q), base_model_name_or_path="no/model", revision="v2")
    with pytest.raises(ValueError, match="stands on 'no/model@v2'"):
        open_weights(folder)
