"""GGUF files, read through the gguf package; quantised tensors are given as the numbers that they stand for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from oodlib.models.names import from_gguf, place_of
from oodlib.models.weights import FLOATS, Weights

# Converters interleave the rows of each head of q and k for some architectures, and leave those of others as they are.
INTERLEAVED = ("llama",)
PLAIN = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "starcoder2", "stablelm", "gpt2")


class GGUF(Weights):
    """A GGUF file under transformers' names and in transformers' order of rows; where that is not known, `quantised`
    says so. ValueError where the package gguf is not installed."""

    def __init__(self, file: Path):
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ValueError(f"reading {file} needs the package gguf: pip install gguf") from error
        self.path, self.quantised, reader = file, {}, GGUFReader(str(file))
        self._tensors = {from_gguf(t.name): t for t in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}
        types = {name: t.tensor_type.name for name, t in self._tensors.items()}
        self.rounded = {name: f"numbers rounded to {dtype}" for name, dtype in types.items() if dtype not in FLOATS}
        architecture, self._heads = reader.get_field("general.architecture").contents(), {}
        if architecture in INTERLEAVED:
            heads = reader.get_field(f"{architecture}.attention.head_count").contents()
            groups = reader.get_field(f"{architecture}.attention.head_count_kv")
            self._heads = {"q_proj": heads, "k_proj": groups.contents() if groups else heads}
        elif architecture not in PLAIN:
            unknown = f"the order of its rows in GGUF is not known for {architecture}"
            self.quantised = {name: unknown for name in self.shapes if _module(name) in ("q_proj", "k_proj")}

    def tensor(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        stored = self._tensors[name]
        weight = torch.tensor(dequantize(stored.data, stored.tensor_type)).reshape(self.shapes[name])
        heads = self._heads.get(_module(name)) if weight.ndim == 2 else None
        if heads:
            rows, columns = weight.shape
            weight = weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        return weight


def _module(name: str) -> str | None:
    place = place_of(name)
    return place and place.module
