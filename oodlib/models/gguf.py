"""GGUF files, read through the gguf package; quantised tensors are given as the numbers that they stand for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oodlib.io import one_line
from oodlib.models.names import from_gguf, place_of
from oodlib.models.weights import FLOATS, Weights, refuse_pointer

# Converters interleave the rows of each head of q and k for some architectures, and leave those of others as they are.
INTERLEAVED = ("llama",)
PLAIN = (
    "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "olmo2", "starcoder2", "stablelm", "gpt2",
)  # fmt: skip
_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


class GGUF(Weights):
    """A GGUF file, with the others that it was split into, under transformers' names and in transformers' order of
    rows; where that is not known, `quantised` says so.

    ValueError, one line with the file's name: damaged, no model (an adapter, a matrix of importance), big-endian, a
    part that is missing; the package gguf is not installed.
    """

    def __init__(self, file: Path):
        self.path, self.shapes, self.quantised, self._tensors, self._heads = file, {}, {}, {}, {}
        first = _open(file)
        count = _value(file, first, "split.count", 1)
        named = _SPLIT.fullmatch(file.name)
        if named and count in (0, 1) and int(named[3]) > 1:
            raise ValueError(f"{file}: its name says that it is one of {int(named[3])} parts, and it does not say so")
        self._files = [file] if count in (0, 1) else _parts(file, count)
        readers = [first if part == file else _open(part) for part in self._files]
        for i, (part, reader) in enumerate(zip(self._files, readers, strict=True)):
            of = _value(part, reader, "split.no", 0), _value(part, reader, "split.count", count)
            if len(self._files) > 1 and of != (i, count):
                raise ValueError(f"{part} says that it is part {of[0]} of {of[1]}, not {i} of {count} (from 0)")
            for tensor in reader.tensors:
                name = from_gguf(tensor.name)
                if name in self._tensors:
                    raise ValueError(f"{part}: {tensor.name} stands in another part of this model too")
                self._tensors[name] = tensor
                self.shapes[name] = tuple(int(n) for n in reversed(tensor.shape))
        total = _value(file, first, "split.tensors.count", len(self._tensors))
        if len(self._files) > 1 and total != len(self._tensors):
            raise ValueError(f"{file} and its other parts hold {len(self._tensors)} tensors, not {total}")
        types = {name: t.tensor_type.name for name, t in self._tensors.items()}
        self.rounded = {name: f"numbers rounded to {dtype}" for name, dtype in types.items() if dtype not in FLOATS}
        head = readers[0]
        if (kind := _value(file, head, "general.type", "model")) != "model":
            raise ValueError(f"{file} holds no model, but is of type {kind}")
        architecture = _value(file, head, "general.architecture")
        if architecture in INTERLEAVED:
            heads = _value(file, head, f"{architecture}.attention.head_count")
            groups = _value(file, head, f"{architecture}.attention.head_count_kv", heads)
            self._heads = {"q_proj": heads, "k_proj": groups}
            for name in self.shapes:
                count = self._heads.get(_module(name))
                if count is not None and (type(count) is not int or count < 1 or self.shapes[name][0] % (2 * count)):
                    self.quantised[name] = f"its {self.shapes[name][0]} rows are not those of {count!r} heads"
        elif architecture not in PLAIN:
            unknown = f"the order of its rows in GGUF is not known for {architecture}"
            self.quantised = {name: unknown for name in self.shapes if _module(name) in ("q_proj", "k_proj")}

    @property
    def files(self) -> list[Path]:
        return self._files

    def tensor(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        stored = self._tensors[name]
        try:
            weight = torch.tensor(dequantize(stored.data, stored.tensor_type)).reshape(self.shapes[name])
        except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{name} of {self.path} cannot be read: {one_line(error)}") from None
        heads = self._heads.get(_module(name)) if weight.ndim == 2 else None
        if heads:
            rows, columns = weight.shape
            weight = weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        return weight


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFEndian, GGUFReader
    except ImportError as error:
        raise ValueError(f"reading {file} needs the package gguf: pip install gguf") from error
    refuse_pointer(file)

    class Reader(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *order: Any, **more: Any) -> Any:
            """As the package has it, which goes on behind the end of a file that was cut off."""
            numbers = super()._get(offset, dtype, count, *order, **more)
            if len(numbers) != int(count):
                raise ValueError(f"it ends at byte {len(self.data)}, before what it says that it holds")
            return numbers

    try:
        reader = Reader(str(file))
    except Exception as error:  # the reader looks at what a damaged file says as if it were whole
        raise ValueError(f"{file} is not a whole GGUF file: {one_line(error)}") from None
    if reader.endianess != GGUFEndian.LITTLE:
        raise ValueError(f"{file} is big-endian, which is not read: convert it with gguf-convert-endian")
    return reader


def _value(file: Path, reader: Any, name: str, default: Any = None) -> Any:
    """What a file says under a name. ValueError where it says nothing and there is no default, or it is damaged."""
    if (field := reader.get_field(name)) is None:
        if default is None:
            raise ValueError(f"{file} does not say its {name}: is it a model, and its first part?")
        return default
    try:
        return field.contents()
    except Exception as error:
        raise ValueError(f"{file}: {name} cannot be read: {one_line(error)}") from None


def _parts(file: Path, count: Any) -> list[Path]:
    """The files of a split model, in their order."""
    match = _SPLIT.fullmatch(file.name)
    if not match or int(match[3]) != count:
        raise ValueError(f"{file} is one of {count} parts, but its name does not say which: NAME-00001-of-00002.gguf")
    parts = [file.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.exists()]:
        raise ValueError(f"{file} is one of {count} parts, of which {', '.join(missing)} are missing")
    return parts


def _module(name: str) -> str | None:
    place = place_of(name)
    return place and place.module
