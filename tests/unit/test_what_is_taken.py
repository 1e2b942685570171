"""oodlib.models: every matrix of a layer is taken, whatever it is called and under any wrapper; the rest is named."""

import json
import os
import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from oodlib.models.checkpoints import open_weights
from oodlib.models.names import key_of, place_of
from oodlib.models.pairs import left_out, pair_up
from oodlib.models.weights import beside

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
LINEAR = {"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES = {
    "deepseek_v3": {**SMALL, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
                    "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                    "moe_intermediate_size": 16, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    "qwen3_next": {**SMALL, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**SMALL, **LINEAR},
    "qwen3_moe": {**SMALL, **EXPERTS},
    "gpt_oss": {**SMALL, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**SMALL, "num_local_experts": 4},
    "bert": SMALL,
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 64},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 64},
    "gpt_neox": SMALL,
    "mamba2": {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 8,
               "n_groups": 1, "vocab_size": 64},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_layer_is_taken_and_all_else_is_named(tmp_path, family):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    kind = AutoModel if family in ("bert", "t5") else AutoModelForCausalLM
    kind.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    weights, shapes = open_weights(tmp_path), {n: t.shape for n, t in load_file(tmp_path / "model.safetensors").items()}
    pairs, remarks = pair_up(weights, weights)
    taken, named = {pair.name for pair in pairs}, {**remarks, **left_out(weights)}
    for name, shape in shapes.items():
        in_layer = any(part.isdigit() for part in name.split("."))
        if in_layer and len(shape) == 2 and not name.endswith("bias"):
            assert name in taken
        elif len(shape) == 3 and "expert" in name:
            assert {f"{name}[{i}]" for i in range(shape[0])} <= taken
            assert torch.equal(weights.matrix(f"{name}[1]"), load_file(tmp_path / "model.safetensors")[name][1])
        elif len(shape) > 1:
            assert name in named and name not in taken
    assert named["vectors"].startswith(f"{sum(len(s) < 2 for s in shapes.values())} tensors")


SIZES = {**SMALL, "num_hidden_layers": 1}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 14}  # fmt: skip
SEEING = {
    "llava": {"text_config": {**SIZES, "model_type": "llama"},
              "vision_config": {**VISION, "model_type": "clip_vision_model"}, "image_token_index": 5},
    "gemma3": {"text_config": {**SIZES, "head_dim": 8}, "vision_config": VISION},
    "qwen2_vl": {"text_config": {**SIZES, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
                 "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 14}},
    "qwen3_vl": {"text_config": {**SIZES, "head_dim": 8},
                 "vision_config": {"depth": 1, "hidden_size": 32, "num_heads": 4, "patch_size": 14,
                                   "intermediate_size": 48, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}},
    "idefics3": {"text_config": {**SIZES, "model_type": "llama"}, "vision_config": VISION},
}  # fmt: skip


@pytest.mark.parametrize("family", SEEING)
def test_a_seeing_model_s_old_and_new_names_are_one(tmp_path, family):
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **SEEING[family]))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "memory").mkdir()
    save_file(state, tmp_path / "memory" / "model.safetensors")
    saved, memory = open_weights(tmp_path / "saved"), open_weights(tmp_path / "memory")
    pairs, remarks = pair_up(memory, saved)
    assert {pair.name for pair in pairs} == {
        n for n, t in state.items() if t.ndim == 2 and (p := place_of(n)) and p.fits()
    }
    assert all(torch.equal(memory.matrix(pair.name), saved.matrix(pair.other)) for pair in pairs)
    assert not [why for why in remarks.values() if "renamed" not in why and "dimensions" not in why]
    keys = {key_of(name) for name in saved.shapes}
    assert {key_of(name) for name in state} - keys <= {key_of("lm_head.weight")}  # tied


RENAMED = {  # families whose files transformers keeps under other names than its models have
    "granitemoe": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**SIZES, "num_local_experts": 4},
    "laguna": {**SIZES, "num_hidden_layers": 2, **EXPERTS, "shared_expert_intermediate_size": 16},
    "vit": VISION,
    "dinov2": VISION,
}


@pytest.mark.parametrize("family", RENAMED)
def test_what_transformers_renames_as_it_loads_is_found(tmp_path, family):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **RENAMED[family]))
    model.save_pretrained(tmp_path / "saved")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept(tmp_path / "memory", state)
    saved, memory = open_weights(tmp_path / "saved"), open_weights(tmp_path / "memory")
    assert set(saved.shapes) != set(state)
    pairs, remarks = pair_up(memory, saved)
    assert len(pairs) >= 6 and all(torch.equal(memory.matrix(p.name), saved.matrix(p.other)) for p in pairs)
    assert not [why for why in remarks.values() if "renamed" not in why and "dimensions" not in why]
    if family == "vit":  # an adapter has the names in memory
        adapter = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        adapter.save_pretrained(tmp_path / "adapter")
        merged = adapter.merge_and_unload().state_dict()
        added = open_weights(tmp_path / "adapter", adapter_base=str(tmp_path / "saved"))
        for pair in pair_up(memory, added)[0]:
            assert torch.allclose(added.matrix(pair.other).float(), merged[pair.name], atol=1e-6), pair


WRAPPERS = ("", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "stacks", [("model.",), ("model.encoder.", "model.decoder."), ("bert.encoder.",), ("transformer.",)], ids=str
)
def test_wrappers_and_the_family_s_prefix_change_nothing(tmp_path, wrapper, stacks):
    torch.manual_seed(0)
    state = {f"{stack}layers.{i}.self_attn.{m}.weight": torch.randn(4, 4)
             for stack in stacks for i in (0, 1) for m in ("q_proj", "v_proj")}  # fmt: skip
    for name, renamed in (("base", lambda n: n), ("other", lambda n: wrapper + n.split(".", 1)[1])):
        (tmp_path / name).mkdir()
        save_file({renamed(n): t for n, t in state.items()}, tmp_path / name / "model.safetensors")
    base, other = open_weights(tmp_path / "base"), open_weights(tmp_path / "other")
    pairs, _ = pair_up(base, other)
    assert len(pairs) == len(state)
    assert all(torch.equal(base.matrix(pair.name), other.matrix(pair.other)) for pair in pairs)


SEVERAL_STACKS = {
    "thinker and talker": ["thinker.model.layers.0.q_proj", "talker.model.layers.0.q_proj"],
    "text and resampler": ["model.text_model.layers.0.q_proj", "model.connector.perceiver_resampler.layers.0.q_proj"],
    "layers between layers": ["model.layers.0.q_proj", "model.gated_cross_attn_layers.0.q_proj"],
    "stages": ["convnext.encoder.stages.0.layers.0.pwconv1", "convnext.encoder.stages.1.layers.0.pwconv1"],
    "global and local": ["vision_model.global_transformer.layers.0.fc1", "vision_model.transformer.layers.0.fc1"],
}


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "_forward_module."])
@pytest.mark.parametrize("model", SEVERAL_STACKS)
def test_stacks_of_one_model_are_not_taken_for_each_other(tmp_path, model, wrapper):
    state = {f"{name}.weight": torch.randn(4, 4) for name in SEVERAL_STACKS[model]}
    base, other = kept(tmp_path / "a", state), kept(tmp_path / "b", {wrapper + name: w for name, w in state.items()})
    pairs, _ = pair_up(base, other)
    assert {pair.name: pair.other for pair in pairs} == {name: wrapper + name for name in state}


def kept(folder, state, file="model.safetensors"):
    folder.mkdir()
    save_file({name: weight.contiguous() for name, weight in state.items()}, folder / file)
    return open_weights(folder)


@pytest.mark.parametrize("prefix", ["gpt_neox.", "roberta.embeddings.", "actor.model.", "_forward_module.model."])
def test_embedding_and_head_are_found_under_any_prefix(tmp_path, prefix):
    names = ["embed_in", "word_embeddings", "lm_head"]
    state = {f"{name}.weight": torch.randn(4, 4) for name in names}
    pairs, remarks = pair_up(
        kept(tmp_path / "a", state), kept(tmp_path / "b", {prefix + n: w for n, w in state.items()}), ["*"]
    )
    assert len(pairs) == 3 and not any("tied" in remark for remark in remarks.values())
    lacking = kept(tmp_path / "c", {"embed_in.weight": torch.randn(4, 4), "lm_head.bias": torch.ones(4)})
    assert "tied" in pair_up(kept(tmp_path / "d", state), lacking, ["*"])[1]["lm_head.weight"]


def test_other_words_for_layers_and_for_stacks_of_experts(tmp_path):
    xlm = {f"transformer.{name}.weight": torch.randn(4, 4) for name in ("attentions.0.q_lin", "ffns.1.lin1")}
    jet = {"model.layers.0.mlp.input_linear.weight": torch.randn(3, 4, 6)}
    for name, state, count in (("xlm", xlm, 2), ("jet", jet, 3)):
        weights = kept(tmp_path / name, state)
        assert len(pair_up(weights, weights)[0]) == count


def test_a_square_matrix_that_is_kept_the_other_way_round_is_not_compared(tmp_path):
    """GPT-2's Conv1D against Linear, and gpt-oss's stacks against one Linear an expert: biases tell, or neighbours."""
    wide, square, bias = torch.randn(8, 24), torch.randn(8, 8), torch.randn(24)
    stem, place = "h.0.attn.c_", "model.layers.0.mlp.experts."
    conv = {f"{stem}attn.weight": wide, f"{stem}attn.bias": bias, f"{stem}proj.weight": square}
    linear = {name: w.T if w.ndim == 2 else w for name, w in conv.items()}
    down, up = torch.randn(2, 8, 8), torch.randn(2, 8, 16)
    stacks = {f"{place}gate_up_proj": up, f"{place}gate_up_proj_bias": torch.randn(2, 16), f"{place}down_proj": down}
    single = {f"{place}{e}.down_proj.weight": down[e].T for e in (0, 1)}
    for i, (one, other) in enumerate(((conv, linear), (linear, conv), (stacks, single))):
        pairs, remarks = pair_up(kept(tmp_path / f"a{i}", one), kept(tmp_path / f"b{i}", other))
        assert not pairs and any("[in, out]" in remark for remark in remarks.values())
    pairs, _ = pair_up(kept(tmp_path / "a3", conv), kept(tmp_path / "b3", conv))
    assert len(pairs) == 2


def test_a_norm_s_gains_are_left_out_and_what_only_has_norm_in_its_name_is_not(tmp_path):
    names = {f"model.layers.0.{module}.weight": taken for module, taken in {
        "self_attn.q_norm": False, "norm1": False, "ln_1": False, "post_ln": False, "input_layernorm": False,
        "self_attention.layernorm_qkv": True, "norm_proj": True, "ada_norm_linear": True,  # of Transformer Engine, …
    }.items()}  # fmt: skip
    weights = kept(tmp_path / "a", {name: torch.randn(6, 4) for name in names})
    pairs, _ = pair_up(weights, weights)
    assert {pair.name for pair in pairs} == {name for name, taken in names.items() if taken}
    assert {name for name, taken in names.items() if not taken} <= set(left_out(weights))


def test_half_a_model_is_not_read_as_a_whole(tmp_path):
    names = [f"model.layers.{i}.q_proj.weight" for i in (0, 1)]
    state = {name: torch.randn(4, 4) for name in names}
    with pytest.raises(ValueError, match=r"a part of a model: model-00002-of-00002\.safetensors missing"):
        kept(tmp_path / "half", {names[0]: state[names[0]]}, "model-00001-of-00002.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({names[0]: state[names[0]]}, tmp_path / "index" / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=rf"index\.json names {names[1]}, which none of its files holds"):
        open_weights(tmp_path / "index")
    whole = kept(tmp_path / "whole", state)
    save_file(state, tmp_path / "whole" / "adapter_model.safetensors")
    whole = open_weights(tmp_path / "whole")
    assert "not read" in whole.remarks["adapter_model.safetensors"]


def test_what_lies_beside_the_weights_is_kept_also_behind_a_link(tmp_path):
    kept(tmp_path / "a", {"model.layers.0.q_proj.weight": torch.ones(2, 2)})
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "tool.jinja").write_text("x")
    (tmp_path / "a" / "templates").symlink_to(tmp_path / "shared")
    (tmp_path / "shared" / "again").symlink_to(tmp_path / "a")  # a circle
    for name in ("voice.npy", "weights.npz", "optimizer.pt", "vocab.bin"):
        (tmp_path / "a" / name).write_bytes(b"x")
    found, left = beside(tmp_path / "a", [tmp_path / "a" / "model.safetensors"])
    assert {"templates/tool.jinja", "voice.npy", "vocab.bin"} == {name.as_posix() for name in found}
    assert {name.as_posix() for name in left} == {"weights.npz", "optimizer.pt"}


def test_other_weights_are_not_kept_whatever_they_are_called_and_a_link_to_nothing_is_named(tmp_path):
    kept(tmp_path / "a", {"model.layers.0.q_proj.weight": torch.ones(2, 2)})
    words = ("tokenizer.pkl", "merges.bin", "tokenizer.model", "sentencepiece.bpe.model")
    weights = ("state_dict.pt", "model_state_dict.bin", "dictionary.pt", "token_embeddings.safetensors", "bpe_ema.ckpt",
               "token_embeddings.bin", "model.onnx_data", "x.llamafile", "model.safetensors.bak")  # fmt: skip
    for name in (*words, *weights):
        (tmp_path / "a" / name).write_bytes(b"x")
    found, left = beside(tmp_path / "a", [tmp_path / "a" / "model.safetensors"])
    assert {name.name for name in found} == {*words} and {name.name for name in left} == {*weights}
    (tmp_path / "a" / "tokenizer.json").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be copied: it is a link to nothing"):
        beside(tmp_path / "a", [])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("file", ["model.safetensors", "model.safetensors.index.json", "adapter_config.json"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path, file):
    os.mkfifo(tmp_path / file)
    with pytest.raises(ValueError, match=rf"{re.escape(file)} cannot be read: it is no file, but a pipe"):
        open_weights(tmp_path)


def test_fused_experts_belong_to_those_saved_one_by_one(tmp_path):
    one_by_one = {f"model.layers.0.mlp.experts.{e}.{m}_proj.weight": torch.randn(3, 5)
                  for e in (0, 1) for m in ("gate", "up")}  # fmt: skip
    mixtral = {n.replace("mlp", "block_sparse_moe").replace("gate_proj", "w1").replace("up_proj", "w3"): t
               for n, t in one_by_one.items()}  # fmt: skip
    fused = torch.stack([torch.cat([one_by_one[f"model.layers.0.mlp.experts.{e}.{m}_proj.weight"]
                                    for m in ("gate", "up")]) for e in (0, 1)])  # fmt: skip
    for name, state in (("a", one_by_one), ("m", mixtral), ("f", {"model.layers.0.mlp.experts.gate_up_proj": fused})):
        (tmp_path / name).mkdir()
        save_file(state, tmp_path / name / "model.safetensors")
    whole = open_weights(tmp_path / "f")
    for name in ("a", "m"):
        pairs, remarks = pair_up(whole, open_weights(tmp_path / name))
        assert len(pairs) == 2 and all("renamed" in why for why in remarks.values())
        for pair in pairs:
            assert torch.equal(open_weights(tmp_path / name).matrix(pair.other), whole.matrix(pair.name))


def test_weights_that_a_process_kept_apart_are_said_to_be_empty(tmp_path):
    for name, shape in (("base", (4, 4)), ("zero", (0,))):
        (tmp_path / name).mkdir()
        save_file({"model.layers.0.q_proj.weight": torch.ones(shape)}, tmp_path / name / "model.safetensors")
    _, remarks = pair_up(open_weights(tmp_path / "base"), open_weights(tmp_path / "zero"))
    assert list(remarks.values()) == ["shapes differ: (4, 4) and (0,)"]


# GGUF


def gguf_file(path, state, architecture="llama", endian=None, split=None, **fields):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), architecture, endianess=endian or gguf.GGUFEndian.LITTLE)
    if architecture == "llama" and not fields.pop("headless", False):
        writer.add_head_count(2)
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        if split[2:]:
            writer.add_int32("split.tensors.count", split[2])
    for name, value in fields.items():
        writer.add_string(name.replace("_", "."), value)
    for name, tensor in state.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


V = {f"blk.{i}.attn_v.weight": np.full((4, 4), i, np.float32) for i in range(2)}


def test_a_split_gguf_is_read_whole_or_refused(tmp_path):
    parts = [gguf_file(tmp_path / f"m-{i + 1:05}-of-00002.gguf", {n: t for n, t in V.items() if f".{i}." in n},
                       split=(i, 2)) for i in range(2)]  # fmt: skip
    for part in parts:
        weights = open_weights(part)
        assert [weights.tensor(f"model.layers.{i}.self_attn.v_proj.weight")[0, 0] for i in range(2)] == [0, 1]
    with pytest.raises(ValueError, match=r"give the GGUF file itself: m-00001-of-00002\.gguf"):
        open_weights(tmp_path)
    parts[1].rename(tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"m-00001-of-00002\.gguf is one of 2 parts, of which m-00002-of-00002\.gguf"):
        open_weights(parts[0])
    with pytest.raises(ValueError, match=r"other\.gguf is one of 2 parts, but its name does not say which"):
        open_weights(tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        ((0, 2, 3), (1, 2, 3), "hold 2 tensors, not 3"),
        ((0, 2), (0, 2), "it is part 0 of 2, not 1 of 2"),
        ((0, 2), (1, 3), "it is part 1 of 3, not 1 of 2"),
        (None, None, "one of 2 parts, and it does not say so"),
    ],
)
def test_parts_of_a_gguf_that_do_not_belong_together_are_refused(tmp_path, first, second, complaint):
    for i, split in enumerate((first, second)):
        state = {name: tensor for name, tensor in V.items() if f".{i}." in name}
        gguf_file(tmp_path / f"m-{i + 1:05}-of-00002.gguf", state, split=split)
    with pytest.raises(ValueError, match=complaint):
        open_weights(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"endian": 1}, "is big-endian"),
        ({"general_type": "adapter"}, "holds no model, but is of type adapter"),
        ({"general_type": "imatrix"}, "holds no model, but is of type imatrix"),
        ({"headless": True}, r"does not say its llama\.attention\.head_count"),
    ],
)
def test_a_gguf_that_is_no_readable_model_is_refused(tmp_path, settings, complaint):
    gguf = pytest.importorskip("gguf")
    if "endian" in settings:
        settings = {"endian": gguf.GGUFEndian.BIG}
    with pytest.raises(ValueError, match=rf"m\.gguf {complaint}"):
        open_weights(gguf_file(tmp_path / "m.gguf", V, **settings))


def test_what_gguf_names_otherwise_is_named(tmp_path):
    state = {
        **V,
        "blk.0.attn_qkv.weight": np.ones((4, 4), np.float32),
        "blk.1.ffn_up_exps.weight": np.ones((3, 4, 4), np.float32),
    }
    weights = open_weights(gguf_file(tmp_path / "m.gguf", state, "qwen3moe"))
    (tmp_path / "base").mkdir()
    experts = {f"model.layers.1.mlp.experts.{e}.up_proj.weight": torch.ones(4, 4) for e in range(3)}
    save_file(experts, tmp_path / "base" / "model.safetensors")
    pairs, remarks = pair_up(open_weights(tmp_path / "base"), weights)
    assert len(pairs) == 3 and remarks["blk.0.attn_qkv.weight"] == "only in m.gguf"
    assert json.dumps(remarks)
