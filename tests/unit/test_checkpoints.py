"""oodlib.models: the same matrices from every kind of checkpoint, and clear words about those that do not fit."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from oodlib.models.checkpoints import open_text, open_weights
from oodlib.models.names import adapted, matrices, place_of, unwrapped
from oodlib.models.pairs import pair_up

Q = "model.layers.1.self_attn.q_proj.weight"


def small_model(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    small_model().save_pretrained(path)
    return path


def test_one_file_and_shards_hold_the_same(folder, tmp_path):
    small_model().save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, many = open_weights(folder), open_weights(tmp_path)
    assert one.shapes == many.shapes and one.shapes[Q] == (16, 16)
    assert all(torch.equal(one.tensor(name), many.tensor(name)) for name in one.shapes)
    assert len(pair_up(one, many)[0]) == 14 and pair_up(one, many)[1] == {}


def test_a_missing_and_a_broken_shard_are_named(tmp_path):
    small_model().save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{shard.name} is not a whole safetensors file"):
        open_weights(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=f"lacks {shard.name}, which model.safetensors.index.json names"):
        open_weights(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_an_adapter_is_what_peft_makes_of_it(folder, tmp_path, settings):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], **settings)
    torch.manual_seed(1)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    weights, base = open_weights(tmp_path, open_weights(folder)), open_weights(folder)
    merged = model.merge_and_unload().state_dict()
    for name in base.shapes:
        torch.testing.assert_close(weights.tensor(name).float(), merged[name])
    assert not torch.equal(weights.tensor(Q), base.tensor(Q))
    assert weights.mark != base.mark


def test_an_adapter_of_another_model_and_of_another_kind_are_refused(folder, tmp_path):
    model = get_peft_model(small_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_bdlora": {"nblocks": 2}}))
    with pytest.raises(ValueError, match="with use_bdlora; only plain LoRA"):
        open_weights(tmp_path, open_weights(folder))
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    other = folder.parent / "other"
    other.mkdir(exist_ok=True)
    save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, other / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"changes model.layers.0.self_attn.q_proj.weight, which .*other does not hold"
    ):
        open_weights(tmp_path, open_weights(other))


def adapter(folder, path, **settings):
    torch.manual_seed(len(str(path)))
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), LoraConfig(r=2, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(path)
    return {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}


def test_an_adapter_stands_on_its_own_base_and_not_on_another_adapter_or_model(folder, tmp_path):
    a, b = (adapter(folder, tmp_path / name, target_modules=["q_proj"]) for name in "ab")
    first = open_weights(tmp_path / "a")
    second = open_weights(tmp_path / "b", first)
    torch.testing.assert_close(first.tensor(Q).float(), a[Q])
    torch.testing.assert_close(second.tensor(Q).float(), b[Q])
    small_model(seed=5).save_pretrained(tmp_path / "stranger")
    torch.testing.assert_close(
        open_weights(tmp_path / "b", open_weights(tmp_path / "stranger")).tensor(Q).float(), b[Q]
    )


def test_saved_modules_and_alternative_patterns_are_what_peft_makes_of_them(folder, tmp_path):
    settings = {"target_modules": ["q_proj", "down_proj"], "alpha_pattern": {"q_proj|down_proj": 3}}
    expected = adapter(folder, tmp_path, modules_to_save=["v_proj"], **settings)
    weights = open_weights(tmp_path)
    for name in weights.shapes:
        torch.testing.assert_close(weights.tensor(name).float(), expected[name])


def test_adapters_that_do_more_are_refused(folder, tmp_path):
    adapter(folder, tmp_path / "olora", target_modules=["q_proj"], init_lora_weights="olora")
    with pytest.raises(ValueError, match="of type LoRA with olora initialisation"):
        open_weights(tmp_path / "olora")
    adapter(folder, tmp_path / "pickled", target_modules=["q_proj"])
    (tmp_path / "pickled" / "adapter_model.safetensors").rename(tmp_path / "pickled" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors"):
        open_weights(tmp_path / "pickled")


def test_a_base_of_the_same_folder_name_is_not_taken_for_an_adapter_s(tmp_path):
    for parent, seed in (("a", 0), ("b", 1)):
        small_model(seed).save_pretrained(tmp_path / parent / "final")
    model = get_peft_model(small_model(1), LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "b" / "final")
    model.save_pretrained(tmp_path / "adapter")
    found = open_weights(tmp_path / "adapter", open_weights(tmp_path / "a" / "final"))
    assert torch.equal(found.tensor(Q), open_weights(tmp_path / "b" / "final").tensor(Q))


@pytest.mark.parametrize("settings", [{"init_lora_weights": "lora_ga"}, {"layer_replication": [[0, 2], [1, 2]]}])
def test_adapters_that_change_their_base_are_refused(folder, tmp_path, settings):
    get_peft_model(small_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    with pytest.raises(ValueError, match=r"of type LoRA with .*; only plain LoRA"):
        open_weights(tmp_path, open_weights(folder))


def test_of_several_files_the_one_is_read_that_transformers_reads(tmp_path):
    small_model(1).save_pretrained(tmp_path, max_shard_size="4KB")  # leaves an index and its shards behind
    small_model(0).save_pretrained(tmp_path)
    save_file({Q: torch.zeros(16, 16)}, tmp_path / "model_old.safetensors")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()[Q]
    assert torch.equal(open_weights(tmp_path).tensor(Q), loaded)


def test_one_matrix_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({Q: torch.eye(4)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=rf"{Q} stands in one.safetensors and in .*two.safetensors: which is it"):
        open_weights(tmp_path)


def test_two_matrices_have_no_partner_in_common(tmp_path):
    tail = "layers.0.self_attn.q_proj.weight"
    for name, starts in (("both", ("left.", "right.")), ("one", ("model.",))):
        (tmp_path / name).mkdir()
        save_file({start + tail: torch.eye(4) for start in starts}, tmp_path / name / "model.safetensors")
    pairs, remarks = pair_up(open_weights(tmp_path / "both"), open_weights(tmp_path / "one"))
    assert not pairs and all("one of 2 that" in remarks[start + tail] for start in ("left.", "right."))


def test_a_changed_configuration_of_an_adapter_changes_its_mark(folder, tmp_path):
    adapter(folder, tmp_path, target_modules=["q_proj"])
    before = open_weights(tmp_path).mark
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 800}))
    assert open_weights(tmp_path).mark != before


def test_a_language_model_is_not_paired_with_a_vision_tower(folder, tmp_path):
    state = {n: t.clone() for n, t in small_model().state_dict().items() if "layers" in n}
    both = {n.replace("model.layers", "language_model.layers"): t for n, t in state.items()}
    both |= {n.replace("model.layers", "vision_tower.encoder.layers"): t + 1 for n, t in state.items()}
    save_file(both, tmp_path / "model.safetensors")
    pairs, remarks = pair_up(open_weights(folder), open_weights(tmp_path))
    assert len(pairs) == 14 and all(pair.other.startswith("language_model.") for pair in pairs)
    assert remarks[Q.replace("model.layers", "vision_tower.encoder.layers")] == f"only in {tmp_path.name}"
    save_file({n: t for n, t in both.items() if "vision" in n}, tmp_path / "model.safetensors")
    assert not pair_up(open_weights(folder), open_weights(tmp_path))[0]


def test_embeddings_on_demand_and_fused_experts_by_name(folder, tmp_path):
    base = open_weights(folder)
    pairs, _ = pair_up(base, base, ["embed_tokens", "lm_head"])
    assert [(p.layer, p.module) for p in pairs] == [(None, "lm_head"), (None, "embed_tokens")]
    tied = {n: t for n, t in small_model().state_dict().items() if n != "lm_head.weight"}
    tied["model.layers.0.mlp.experts.gate_up_proj"] = torch.ones(2, 3, 4)
    save_file(tied, tmp_path / "model.safetensors")
    other = open_weights(tmp_path)
    assert pair_up(base, other, ["lm_head"])[1] == {
        "lm_head.weight": f"missing in {tmp_path.name} (tied to the embedding)"
    }
    fused = [f"model.layers.0.mlp.experts.gate_up_proj[{i}]" for i in (0, 1)]
    assert pair_up(base, other)[1] == dict.fromkeys(fused, f"only in {tmp_path.name}")
    assert {pair.name: pair.module for pair in pair_up(other, other)[0]}[fused[1]] == "gate_up_proj"


def test_gguf_of_an_unknown_architecture_leaves_out_what_it_cannot_order(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "minicpm")
    for name in ("attn_q", "attn_v"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = open_weights(tmp_path / "small.gguf")
    pairs, remarks = pair_up(weights, weights)
    assert [p.module for p in pairs] == ["v_proj"]
    assert "not known for minicpm" in remarks["model.layers.0.self_attn.q_proj.weight"]


def test_gguf_holds_the_numbers_of_the_model(folder, tmp_path):
    gguf = pytest.importorskip("gguf")
    state = small_model().state_dict()
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "llama")
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.down_proj": "ffn_down"}
    for layer in (0, 1):
        for own, theirs in names.items():
            weight = state[f"model.layers.{layer}.{own}.weight"].numpy()
            heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
            if heads:  # as the llama converter permutes it
                weight = weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base, weights = open_weights(folder), open_weights(tmp_path / "small.gguf")
    pairs, left_out = pair_up(base, weights)
    assert {p.module for p in pairs} == {"q_proj", "k_proj", "down_proj"} and len(pairs) == 6
    assert left_out["model.layers.0.mlp.up_proj.weight"] == "missing in small.gguf"
    for pair in pairs:
        assert torch.equal(weights.tensor(pair.other), base.tensor(pair.name))


def test_what_does_not_fit_is_named_and_the_rest_is_paired(folder, tmp_path):
    state = small_model().state_dict()
    part = "model.layers.0.self_attn"
    state[f"{part}.k_proj.weight"] = torch.ones(3, 16)
    state[f"{part}.v_proj.weight"] = torch.ones(8, 16, dtype=torch.int8)
    del state[f"{part}.o_proj.weight"]
    for name in [n for n in state if "layers.1." in n]:
        state[name.replace("model.layers", "model.language_model.layers")] = state.pop(name)
    save_file(state, tmp_path / "model.safetensors")
    pairs, left_out = pair_up(open_weights(folder), open_weights(tmp_path))
    name = tmp_path.name
    assert left_out[f"{part}.k_proj.weight"] == "shapes differ: (8, 16) and (3, 16)"
    assert left_out[f"{part}.v_proj.weight"] == f"quantised in {name} (I8)"
    assert left_out[f"{part}.o_proj.weight"] == f"missing in {name}"
    assert left_out[Q] == "taken for model.language_model.layers.1.self_attn.q_proj.weight there (renamed)"
    assert len(pairs) == 11 and pairs[-1].layer == 1


def test_modules_and_layers_are_chosen(folder):
    base = open_weights(folder)

    def chosen(*modules, layers=None):
        return [(p.layer, p.module) for p in pair_up(base, base, modules, layers)[0]]

    assert chosen("q_proj") == [(0, "q_proj"), (1, "q_proj")]
    assert chosen("mlp.*", layers=[1]) == [(1, "down_proj"), (1, "gate_proj"), (1, "up_proj")]
    with pytest.raises(
        ValueError, match=r"no matrix matches modules query; modules here: down_proj, embed_tokens, gate"
    ):
        chosen("query")


def test_a_run_of_the_suite_is_named_by_its_step(folder, tmp_path):
    places = (
        "seed-10/sft-01234567/checkpoint-8",
        "seed-10/rl-from-8-01234567/checkpoint-80",
        "seed-11/sft-0123/checkpoint-8",
    )
    for place in places:
        (tmp_path / "checkpoints" / place).mkdir(parents=True)
        save_file({Q: torch.eye(2)}, tmp_path / "checkpoints" / place / "model.safetensors")
    for which, place in zip(("8", "rl-from-8", "seed-11/8"), places, strict=True):
        assert open_weights(f"{tmp_path}@{which}").path == tmp_path / "checkpoints" / place
    with pytest.raises(ValueError, match=r"has no checkpoint '9'; it has those of rl-from-8, sft"):
        open_weights(f"{tmp_path}@9")


def test_unknown_places_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="holds no safetensors file"):
        open_weights(tmp_path)
    with pytest.raises(ValueError, match="unknown checkpoint 'nowhere': allowed are"):
        open_weights("nowhere")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (Q, (1, "q_proj")),
        ("transformer.h.10.attn.c_attn.weight", (10, "c_attn")),
        ("model.embed_tokens.weight", (None, "embed_tokens")),
        ("lm_head.weight", (None, "lm_head")),
        ("model.layers.3.mlp.experts.7.up_proj.weight", (3, "up_proj")),
        ("model.layers.3.attention.output.weight", (3, "output")),
        ("model.norm.weight", None),
    ],
)
def test_the_place_of_a_weight(name, place):
    assert place_of(name) == place or (place_of(name).layer, place_of(name).module) == place


def test_matrices_are_the_projections_that_text_reaches():
    names = [Q, "model.layers.0.cross_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    names += ["vision_tower.layers.1.q_proj.weight", "model.layers.1.norm.weight", "model.layers.1.q_proj.bias"]
    shapes = {name: (4,) if "norm" in name or "bias" in name else (4, 4) for name in names}
    assert list(matrices(shapes)) == [Q] and list(matrices(shapes, embeddings=True)) == [Q, "lm_head.weight"]


def test_wrappers_and_adapters_names_lead_to_the_base_s():
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "base_model.model."):
        assert unwrapped(prefix + Q) == Q
    module = f"base_model.model.{Q.removesuffix('.weight')}"
    assert adapted(f"{module}.lora_A.weight") == (Q, "A") and adapted(f"{module}.lora_B.default.weight") == (Q, "B")
    assert adapted(f"{module}.weight") == (Q, None)


def test_a_seeing_model_s_language_model_is_read_as_if_it_stood_alone(tmp_path):
    state = {f"language_model.{Q}": torch.eye(4), "vision_tower.x.weight": torch.ones(2, 2)}
    state["language_model.lm_head.weight"] = torch.ones(4, 4, dtype=torch.int8)
    save_file(state, tmp_path / "model.safetensors")
    text = open_text(tmp_path)
    assert set(text.shapes) == {Q, "lm_head.weight"} and torch.equal(text.tensor(Q), torch.eye(4))
    assert text.quantised == {"lm_head.weight": "I8"}
