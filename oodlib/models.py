"""Models: loading one with its tokenizer, and the list of its weight matrices. Safetensors only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from oodlib.model_source import model_folder

__all__ = ["device", "load_model", "load_tokenizer", "load_weights", "matrices", "mix", "model_folder"]

_EMBEDDING = re.compile(r"(embed_tokens|lm_head)\.weight$")
_MATRIX = re.compile(r"layers\.(\d+)\.(?:\w+\.)*(\w+_proj)\.weight$")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path, to_train: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model and the tokenizer in `folder`: bfloat16 on a GPU that has it, else float32.

    `to_train`: float32 anywhere, for an update of 1e-6 is lost in bfloat16 weights; trainers compute in bfloat16.
    """
    where = device()
    half = where.type == "cuda" and torch.cuda.is_bf16_supported() and not to_train
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16 if half else torch.float32, use_safetensors=True, local_files_only=True
    )
    return model.to(where), load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, of the class that its own configuration names, padding on the left.

    (transformers 5 gives any model of type qwen2 Qwen's own tokenizer class, which would misread the tiny
    model's tokenizer without a word; so a plain one is loaded as what it says it is.)
    """
    settings = Path(folder) / "tokenizer_config.json"
    declared = json.loads(settings.read_text()).get("tokenizer_class") if settings.exists() else None
    plain = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    kind = PreTrainedTokenizerFast if plain else AutoTokenizer
    tokenizer = kind.from_pretrained(folder, padding_side="left", local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files in `folder`, by name, on the CPU."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors file")
    weights = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            weights.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    return weights


def mix(parts: list[tuple[Path, float]]) -> dict[str, torch.Tensor]:
    """The weighted sum of several checkpoints' tensors, summed in float64, in the first checkpoint's dtype."""
    first, *others = [(load_weights(folder), share) for folder, share in parts]
    mixed = {}
    for name, tensor in first[0].items():
        total = first[1] * tensor.double()
        for weights, share in others:
            total += share * weights[name].double()
        mixed[name] = total.to(tensor.dtype)
    return mixed


def matrices(names: list[str], embeddings: bool = False) -> dict[str, tuple[int | None, str]]:
    """The attention and MLP projections among weight names: name -> (layer, module), e.g. (3, "q_proj").

    With `embeddings` also the embedding and the unembedding, which are in no layer (None).
    """
    found = {name: _MATRIX.search(name) for name in sorted(names)}
    outer = {n: (None, m[1]) for n in names if embeddings and (m := _EMBEDDING.search(n))}
    return {name: (int(m[1]), m[2]) for name, m in found.items() if m} | outer
