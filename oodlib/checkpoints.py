"""Weights of any checkpoint, one matrix at a time: folders of safetensors, hub ids, PEFT adapters, GGUF files.

Nothing is loaded whole: safetensors and GGUF files are memory-mapped, and an adapter is added to its base matrix by
matrix. No pickle is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oodlib.models import NAMED
from oodlib.presets import digest

MODULES = ("*_proj",)
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.(.+)\.weight$")
_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_FLOATS = {"F64", "F32", "F16", "BF16"}


class Weights:
    """The tensors of a checkpoint by name. `shapes` is name -> shape; `quantised` names those that hold no floats."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    quantised: dict[str, str]

    def tensor(self, name: str) -> Tensor:
        """One tensor, read now, in its own dtype."""
        raise NotImplementedError

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
                        piece = tensors.get_slice(name)
                        self._files[name], self.shapes[name] = file, tuple(piece.get_shape())
                        if piece.get_dtype() not in _FLOATS:
                            self.quantised[name] = piece.get_dtype()
            except SafetensorError as error:
                raise ValueError(f"{file} is not a whole safetensors file: {error}") from error

    def _shards(self) -> list[Path]:
        for index in sorted(self.path.glob("*.safetensors.index.json")):
            named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in named if not (self.path / name).exists()]
            if missing:
                raise ValueError(f"{self.path} lacks {', '.join(missing)}, which {index.name} names")
            return [self.path / name for name in named]
        return sorted(self.path.glob("*.safetensors"))

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)


class Adapter(Weights):
    """A PEFT LoRA folder on its base: W + scale B A, formed a matrix at a time."""

    def __init__(self, folder: Path, base: Weights):
        from peft import LoraConfig, PeftConfig

        self.path, self.base = folder, base
        self.config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(self.config, LoraConfig) or self.config.use_dora:
            kind = "DoRA" if isinstance(self.config, LoraConfig) else self.config.peft_type
            raise ValueError(f"{folder} is an adapter of type {kind}; only plain LoRA can be added to its base")
        self.low_rank = Safetensors(folder)
        prefix, middle = "base_model.model.", ".lora_A"
        for name in self.low_rank.shapes:
            if middle in name:
                own = name.split(middle)[0].removeprefix(prefix)
                if f"{own}.weight" not in base.shapes:
                    raise ValueError(f"{folder} changes {own}, which {base.path} does not hold: is that its base?")
        self.shapes, self.quantised = dict(base.shapes), dict(base.quantised)

    @cached_property
    def mark(self) -> str:
        return digest([self.low_rank.mark, self.base.mark])

    def tensor(self, name: str) -> Tensor:
        own = name.removesuffix(".weight")
        pair = {
            part: next((n for n in self.low_rank.shapes if n.startswith(f"base_model.model.{own}.lora_{part}")), None)
            for part in "AB"
        }
        weight = self.base.tensor(name)
        if None in pair.values():
            return weight
        A, B = (self.low_rank.tensor(pair[part]).double() for part in "AB")
        change = self._scale(own, len(A)) * (B @ A)
        return weight.double() + (change.T if self.config.fan_in_fan_out else change)

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.alpha_pattern or {}
        alpha = next((a for p, a in patterns.items() if re.fullmatch(rf"(?:.*\.)?{p}", module)), self.config.lora_alpha)
        return alpha / (rank**0.5 if self.config.use_rslora else rank)


_GGUF_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_GGUF_OUTER = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}


class GGUF(Weights):
    """A GGUF file, read through the gguf package; quantised tensors are given as the numbers that they stand for."""

    def __init__(self, file: Path):
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ValueError(f"reading {file} needs the package gguf: pip install gguf") from error
        self.path, self.quantised, reader = file, {}, GGUFReader(str(file))
        self._tensors = {self._name(t.name): t for t in reader.tensors}
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}
        self._heads = {}
        architecture = reader.get_field("general.architecture").contents()
        if architecture == "llama":  # its converter interleaves the rows of each head of q and k
            heads = reader.get_field("llama.attention.head_count").contents()
            groups = reader.get_field("llama.attention.head_count_kv")
            self._heads = {"q_proj": heads, "k_proj": groups.contents() if groups else heads}

    def _name(self, name: str) -> str:
        parts = name.split(".")
        if parts[0] == "blk" and parts[2] in _GGUF_LAYER:
            return f"model.layers.{parts[1]}.{_GGUF_LAYER[parts[2]]}.{parts[3]}"
        return _GGUF_OUTER.get(name, name)

    def tensor(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        found = self._tensors[name]
        weight = torch.tensor(dequantize(found.data, found.tensor_type)).reshape(self.shapes[name])
        heads = self._heads.get(name.split(".")[-2]) if name.endswith(".weight") else None
        if heads:
            rows, columns = weight.shape
            weight = weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        return weight


def open_weights(where: str | Path, base: Weights | None = None) -> Weights:
    """The weights at `where`: a folder of safetensors, a PEFT adapter folder (which needs `base`, or else the base that
    its configuration names), a GGUF file, `tiny`, or a hub id as ORG/NAME or ORG/NAME@REVISION.

    ValueError where there is nothing of the kind, or it is damaged.
    """
    path = Path(NAMED.get(str(where), where)).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return GGUF(path)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            named = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
            return Adapter(path, base or open_weights(named))
        if any(path.glob("*.safetensors*")):
            return Safetensors(path)
        raise ValueError(f"{path} holds no safetensors file (pickled weights are not read)")
    hub = _HUB.fullmatch(str(where))
    if path.exists() or not hub:
        raise ValueError(
            f"unknown checkpoint {str(where)!r}: allowed are a folder of safetensors, a PEFT adapter folder, "
            f"a .gguf file, ORG/NAME[@REVISION] on the Hugging Face hub, or {', '.join(NAMED)}"
        )
    return open_weights(_download(*hub.groups()), base)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.safetensors*", "*.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ValueError(
            f"{repository!r} is no folder here, and could not be had from the hub{at}: {str(error).splitlines()[0]}"
        ) from error


# ---- which matrices of two checkpoints belong together ---------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A matrix that two checkpoints share, under its name in each."""

    name: str
    other: str
    layer: int
    module: str
    shape: tuple[int, int]


def pair_up(
    base: Weights, other: Weights, modules: Iterable[str] = MODULES, layers: Iterable[int] | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """The chosen matrices of `base` with their partners, and for each one without a partner the reason.

    modules: glob patterns over the module's name, "q_proj", or over its path in the layer, "self_attn.*". layers:
    their numbers, all by default. Partners have the same name, or else the same path from the layer on.
    ValueError where nothing is chosen.
    """
    by_tail = {m[0].lstrip("."): name for name in other.shapes if (m := _LAYER.search(name))}
    modules, layers = list(modules), None if layers is None else set(layers)
    pairs, left_out = [], {}
    for name, shape in sorted(base.shapes.items(), key=lambda item: _order(item[0])):
        place = _LAYER.search(name)
        if not place or len(shape) < 2:
            continue
        layer, path = int(place[1]), place[2]
        module = path.split(".")[-1]
        if layers is not None and layer not in layers:
            continue
        if not any(fnmatchcase(module, p) or fnmatchcase(path, p) for p in modules):
            continue
        partner = name if name in other.shapes else by_tail.get(place[0].lstrip("."))
        reason = _unfit(name, partner, base, other)
        if reason:
            left_out[name] = reason
        else:
            pairs.append(Pair(name, partner, layer, module, shape))
            if partner != name:
                left_out[name] = f"taken for {partner} there (renamed)"
    if not pairs and not left_out:
        known = sorted({m[2].split(".")[-1] for n, s in base.shapes.items() if len(s) == 2 and (m := _LAYER.search(n))})
        raise ValueError(
            f"no matrix matches modules {', '.join(modules)} and the layers given; modules here: {', '.join(known)}"
        )
    return pairs, left_out


def _unfit(name: str, partner: str | None, base: Weights, other: Weights) -> str | None:
    if partner is None:
        return f"missing in {other.path.name}"
    for weights, own in ((base, name), (other, partner)):
        if own in weights.quantised:
            return f"quantised in {weights.path.name} ({weights.quantised[own]})"
    if len(base.shapes[name]) != 2:
        return f"has {len(base.shapes[name])} dimensions"
    if base.shapes[name] != other.shapes[partner]:
        return f"shapes differ: {base.shapes[name]} and {other.shapes[partner]}"
    return None


def layer_of(name: str) -> tuple[int, str] | None:
    """The layer and the module of a weight's name, such as (3, "q_proj"); None for one that is in no layer."""
    place = _LAYER.search(name)
    return (int(place[1]), place[2].split(".")[-1]) if place else None


def _order(name: str) -> tuple[int, str]:
    place = _LAYER.search(name)
    return (int(place[1]) if place else -1, name)
