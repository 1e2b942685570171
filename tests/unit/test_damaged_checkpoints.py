"""Checkpoints damaged at random: right values, a remark, or one line with the file's name; never another error."""

import json
import os
import random
import re
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import oodlib
from oodlib.models.checkpoints import open_weights
from oodlib.models.loading import load_model
from oodlib.models.pairs import left_out, pair_up
from oodlib.models.sources import model_folder
from oodlib.spectral.comparison import Comparing
from oodlib.spectral.surgery import Edit, ModelEdit
from oodlib.spectral.svd import as_matrix

MUTATIONS = int(os.environ.get("OODLIB_MUTATIONS", "60"))  # of each kind of file
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 4976698672\n"
VALUES = [None, True, 0, -1, 2**70, 1e400, float("nan"), "", "x", "../../x", "\x00", [], [1], {}, {"a": None}, "LORA"]


def small(**options):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=2, vocab_size=16, **options)  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Every kind of checkpoint, sound, and which of its files are damaged."""
    folder = tmp_path_factory.mktemp("sound")
    small().save_pretrained(folder / "whole")
    small().save_pretrained(folder / "sharded", max_shard_size="1KB")
    model = get_peft_model(small(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.peft_config["default"].base_model_name_or_path = str(folder / "whole")
    model.save_pretrained(folder / "adapter")
    kinds = [("whole", "model.safetensors"), ("sharded", "model.safetensors.index.json"),
             ("adapter", "adapter_config.json"), ("adapter", "adapter_model.safetensors")]  # fmt: skip
    try:
        import gguf
    except ImportError:
        return folder, kinds
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), "llama")
    writer.add_head_count(2)
    writer.add_token_list(["a", "b"])
    for name in ("attn_q", "attn_v"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((8, 8), np.float32))
    eight = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.ffn_up.weight", gguf.quantize(np.ones((8, 32), np.float32), eight), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, [*kinds, ("model.gguf", "")]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut off, bits flipped, bytes put in or taken out, another file, another encoding, a value changed."""
    kind = rng.choice(
        ("cut", "flip", "flip", "head", "insert", "remove", "foreign", "encoding", "json", "json", "json")
    )
    at = rng.randrange(len(content) + 1)
    if kind == "cut":
        return content[:at]
    if kind in ("flip", "head"):
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(min(len(data), 400) if kind == "head" else len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)
    if kind == "insert":
        return content[:at] + rng.randbytes(rng.choice((1, 8, 100))) + content[at:]
    if kind == "remove":
        return content[:at] + content[at + rng.choice((1, 8, 100)) :]
    if kind == "foreign":
        return rng.choice(
            (b"", LFS, b"[]", b"null", b"\x80\x04K\x01.", b"GGUF", b"PK\x03\x04", rng.randbytes(500), b"[" * 9000)
        )
    try:
        text = content.decode()
        if kind == "encoding":
            return rng.choice((text.encode("utf-16"), b"\xef\xbb\xbf" + content, text.encode().replace(b"o", b"\xff")))
        return json.dumps(_changed(json.loads(text), rng)).encode()
    except ValueError:  # no text: safetensors' header
        size = int.from_bytes(content[:8], "little")
        if kind == "encoding" or size > len(content):
            return content[::-1]
        header = json.dumps(_changed(json.loads(content[8 : 8 + size]), rng)).encode()
        return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _changed(value, rng):
    """One value of a JSON object changed, taken out, or renamed, at any depth."""
    if not isinstance(value, dict) or not value or rng.random() < 0.05:
        return rng.choice(VALUES)
    key = rng.choice(sorted(value))
    if isinstance(value[key], dict) and rng.random() < 0.8:
        return {**value, key: _changed(value[key], rng)}
    if rng.random() < 0.2:
        return {name: part for name, part in value.items() if name != key}
    if rng.random() < 0.2:
        return {(rng.choice(("x", key.upper(), f"{key}.lora_A")) if n == key else n): part for n, part in value.items()}
    return {**value, key: rng.choice(VALUES)}


def look(path, base):
    """What `oodlib compare` does with a checkpoint, up to the numbers: how many matrices could be read."""
    weights = open_weights(path, base)
    pairs, remarks = pair_up(base, weights)
    json.dumps({**remarks, **left_out(weights)})
    for pair in pairs:
        try:
            as_matrix(weights.matrix(pair.other), f"{pair.other} of {weights.path}")
        except ValueError as error:  # a remark
            assert str(weights.path) in str(error) or weights.path.name in str(error)
    return len(pairs)


def test_whatever_is_damaged_is_read_remarked_or_refused_in_one_line(sound, tmp_path):
    folder, kinds = sound
    base, rng, refused, read = open_weights(folder / "whole"), random.Random(0), 0, 0
    for kind, file in kinds:
        for number in range(MUTATIONS):
            copy = tmp_path / f"{number}-{file}-{kind}"
            (shutil.copytree if (folder / kind).is_dir() else shutil.copy)(folder / kind, copy)
            bad = copy / file if file else copy
            bad.write_bytes(damaged(bad.read_bytes(), rng))
            start = time.monotonic()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read += look(copy, base) > 0
            except (ValueError, OSError) as error:
                assert "\n" not in str(error).strip() and len(str(error)) < 2000, str(error)
                assert copy.name in str(error), f"{bad}: {error}"
                refused += 1
            assert time.monotonic() - start < 10
    assert refused > 30 and read > 30


FOREIGN = {
    "config.json": [
        b"",
        b"[]",
        b'{"model_type": ',
        b'{"model_type": "no such"}',
        '{"model_type": "llama"}'.encode("utf-16"),
        LFS,
    ],
    "tokenizer_config.json": [b"", b"[]", b'{"tokenizer_class": 3}', LFS],
    "tokenizer.json": [b"", b"{}", b'{"model": {"type": "BPE"}}', LFS],
    "model.safetensors": [b"", LFS],
}


@pytest.mark.parametrize("file", FOREIGN)
def test_a_model_that_cannot_be_loaded_is_named(tmp_path, file):
    shutil.copytree(model_folder("tiny"), tmp_path / "model")
    for content in FOREIGN[file]:
        (tmp_path / "model" / file).write_bytes(content)
        with pytest.raises((ValueError, OSError), match=str(tmp_path / "model")) as caught:
            load_model(tmp_path / "model")
        assert "\n" not in str(caught.value)


CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass X: pass\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_nor_asked_about(tmp_path, file, monkeypatch):
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(model_folder("tiny"), folder)
    (folder / "own.py").write_text(CODE.format(str(ran)))
    settings = json.loads((folder / file).read_text())
    classes = ("AutoConfig", "AutoModelForCausalLM") if file == "config.json" else ("AutoTokenizer",)
    changed = {"auto_map": {name: ["own.X", None] if name == "AutoTokenizer" else "own.X" for name in classes}}
    changed |= {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "X"}
    (folder / file).write_text(json.dumps(settings | changed))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    try:
        load_model(folder)
    except ValueError as error:
        assert str(error) == f"{folder} cannot be loaded: it needs code of its own, which is not run"
    assert len(list(Comparing(str(folder), ["tiny"], tmp_path / "compared", ["v_proj"], [0]).run())) == 1
    ModelEdit(str(folder), "tiny", Edit(top=1, layers=[0])).write(tmp_path / "edited")
    assert not ran.exists()


def test_nothing_in_the_package_loads_without_saying_that_code_is_not_trusted():
    calls = re.compile(r"(?:AutoConfig|AutoTokenizer|CausalLM|loader)\.from_(?:pretrained|config)\(|config_of\(folder")
    for file in Path(oodlib.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for call in calls.finditer(text):
            said = text[call.start() : call.start() + 300]
            assert "trust_remote_code=False" in said or "**options" in said, f"{file}: {call[0]}"


def test_a_restore_that_is_refused_leaves_nothing(sound, tmp_path):
    folder, _ = sound
    shutil.copytree(folder / "whole", tmp_path / "donor")
    file = tmp_path / "donor" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        ModelEdit(str(folder / "whole"), str(tmp_path / "donor"), Edit()).write(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"donor"}
