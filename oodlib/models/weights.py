"""The tensors of a checkpoint, read one at a time; those of a folder of safetensors, which is memory-mapped."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oodlib.io import digest, read_json

FLOATS = ("F64", "F32", "F16", "BF16")  # what safetensors and GGUF call numbers that are not quantised


def device() -> torch.device:
    """Where this process puts weights: its GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


class Weights(ABC):
    """The tensors of a checkpoint by name. `shapes` is name -> shape; `quantised` names those that hold no floats.

    `rounded`: those that can be read, but were quantised.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    quantised: dict[str, str]
    rounded: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One tensor, read now, in its own dtype."""

    @cached_property
    def mark(self) -> str:
        """Changes when the files do (names, sizes, times of change)."""
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.safetensors"))
        return digest([str(self.path.resolve()), *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)])


class Safetensors(Weights):
    """A folder with one safetensors file, or several with an index."""

    def __init__(self, folder: Path):
        self.path, self.shapes, self.quantised = folder, {}, {}
        self.shards, self._files = self._shards(), {}
        for file in self.shards:
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118
                        if name in self._files:
                            raise ValueError(f"{name} stands in {self._files[name].name} and in {file}: which is it?")
                        piece = tensors.get_slice(name)
                        self._files[name], self.shapes[name] = file, tuple(piece.get_shape())
                        if piece.get_dtype() not in FLOATS:
                            self.quantised[name] = piece.get_dtype()
            except SafetensorError as error:
                raise ValueError(f"{file} is not a whole safetensors file: {error}") from error

    def _shards(self) -> list[Path]:
        """As transformers chooses: model.safetensors, else what its index names; else every file there is."""
        if (whole := self.path / "model.safetensors").exists():
            return [whole]
        if not (index := self.path / "model.safetensors.index.json").exists():
            return sorted(self.path.glob("*.safetensors"))
        shards = [self.path / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise ValueError(f"{self.path} lacks {', '.join(missing)}, which {index.name} names")
        return shards

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)
