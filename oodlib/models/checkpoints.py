"""Weights of any checkpoint, one matrix at a time: folders of safetensors, hub ids, PEFT adapters, GGUF files.

Nothing is loaded whole: safetensors and GGUF files are memory-mapped, and an adapter is added to its base matrix by
matrix. No pickle is read.
"""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oodlib.io import digest
from oodlib.models.sources import NAMED, PACKAGES, from_hub, model_folder

_INSIDE = re.compile(r"language_model\.(?=model\.|lm_head\.)")
_FLOATS = {"F64", "F32", "F16", "BF16"}
PLAIN = (True, False, "gaussian", "eva", "orthogonal", "mica")  # initialisations of LoRA that leave the base as it is
VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "layer_replication", "kasa_config", "monteclora_config")


def device() -> torch.device:
    """Where this process puts weights: its GPU, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


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
                        if piece.get_dtype() not in _FLOATS:
                            self.quantised[name] = piece.get_dtype()
            except SafetensorError as error:
                raise ValueError(f"{file} is not a whole safetensors file: {error}") from error

    def _shards(self) -> list[Path]:
        """As transformers chooses: model.safetensors, else what its index names; else every file there is."""
        if (whole := self.path / "model.safetensors").exists():
            return [whole]
        usual = self.path / "model.safetensors.index.json"
        for index in [usual] if usual.exists() else sorted(self.path.glob("*.safetensors.index.json"))[:1]:
            named = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            missing = [name for name in named if not (self.path / name).exists()]
            if missing:
                raise ValueError(f"{self.path} lacks {', '.join(missing)}, which {index.name} names")
            return [self.path / name for name in named]
        return sorted(self.path.glob("*.safetensors"))

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)


class TextPath(Weights):
    """The language model inside a model that also sees, under the names that it has when it stands alone."""

    def __init__(self, whole: Weights):
        self.whole, self.path, self.quantised = whole, whole.path, dict(whole.quantised)
        self._names = {_INSIDE.sub("", n): n for n in whole.shapes if _INSIDE.match(n)}
        self.shapes = {name: whole.shapes[inner] for name, inner in self._names.items()}

    def tensor(self, name: str) -> Tensor:
        return self.whole.tensor(self._names[name])


def open_text(where: str | Path) -> Weights:
    """As `open_weights`, but of a model that also sees only the language model."""
    found = open_weights(where)
    return TextPath(found) if any(_INSIDE.match(name) for name in found.shapes) else found


class Adapter(Weights):
    """A PEFT LoRA folder on its base: W + scale B A, formed a matrix at a time.

    ValueError for adapters that do more than that: other kinds and variants (DoRA and the like), initialisations that
    may change the base (all but `PLAIN`, such as PiSSA or LoRA-GA), and any tensor that would be left out.
    """

    def __init__(self, folder: Path, given: Weights | None):
        from peft import LoraConfig, PeftConfig

        self.path, self.config = folder, PeftConfig.from_pretrained(str(folder))
        kind = self.config.peft_type.value if not isinstance(self.config, LoraConfig) else None
        if kind is None:
            variants = [name for name in VARIANTS if getattr(self.config, name, None)]
            kind = f"LoRA with {', '.join(variants)}" if variants else None
        if kind is None and self.config.init_lora_weights not in PLAIN:
            kind = f"LoRA with {self.config.init_lora_weights} initialisation"
        if kind:
            raise ValueError(f"{folder} is an adapter of type {kind}; only plain LoRA can be added to its base")
        self.base = self._base(given)
        self.low_rank = Safetensors(folder)
        if not self.low_rank.shapes:
            raise ValueError(f"{folder} holds no adapter_model.safetensors (pickled weights are not read)")
        self.shapes, self.quantised = dict(self.base.shapes), dict(self.base.quantised)
        self._pairs: dict[str, dict[str, str]] = {}
        self._saved: dict[str, str] = {}
        for name in self.low_rank.shapes:
            own = name.removeprefix("base_model.model.")
            found = re.fullmatch(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight", own)
            target = f"{found[1]}.weight" if found else own
            if target not in self.base.shapes:
                raise ValueError(f"{folder} changes {target}, which {self.base.path} does not hold: is that its base?")
            if found:
                self._pairs.setdefault(target, {})[found[2]] = name
            else:  # modules_to_save
                self._saved[target] = name
        if broken := [name for name, pair in self._pairs.items() if set(pair) != {"A", "B"}]:
            raise ValueError(f"{folder} holds only half of the change of {', '.join(broken)}")

    def _base(self, given: Weights | None) -> Weights:
        """The base that the configuration names; the one given, if none is named, or one of its name not here."""
        while isinstance(given, Adapter):
            given = given.base
        named = self.config.base_model_name_or_path
        if given is not None:
            here = bool(named) and Path(named).expanduser().exists()
            alike = _same(Path(named), given.path) if here else not named or Path(named).name == given.path.name
            if alike:
                return given
        if not named:
            raise ValueError(f"{self.path} does not name its base")
        return open_weights(named)

    @cached_property
    def mark(self) -> str:
        configuration = (self.path / "adapter_config.json").read_text()
        return digest([self.low_rank.mark, self.base.mark, configuration])

    def tensor(self, name: str) -> Tensor:
        if name in self._saved:
            return self.low_rank.tensor(self._saved[name])
        weight = self.base.tensor(name)
        if name not in self._pairs:
            return weight
        A, B = (self.low_rank.tensor(self._pairs[name][part]).double() for part in "AB")
        change = self._scale(name.removesuffix(".weight"), len(A)) * (B @ A)
        return weight.double() + (change.T if self.config.fan_in_fan_out else change)

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.alpha_pattern or {}
        alpha = next((a for p, a in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), self.config.lora_alpha)
        return alpha / (rank**0.5 if self.config.use_rslora else rank)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and a.resolve() == b.resolve()


_GGUF_LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
# Converters interleave the rows of each head of q and k for some architectures, and leave those of others as they are.
_GGUF_INTERLEAVED = ("llama",)
_GGUF_PLAIN = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2", "starcoder2", "stablelm", "gpt2")
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
        plain = ("F64", "F32", "F16", "BF16")
        kinds = {name: t.tensor_type.name for name, t in self._tensors.items()}
        self.rounded = {name: f"numbers rounded to {kind}" for name, kind in kinds.items() if kind not in plain}
        architecture, self._heads = reader.get_field("general.architecture").contents(), {}
        if architecture in _GGUF_INTERLEAVED:
            heads = reader.get_field(f"{architecture}.attention.head_count").contents()
            groups = reader.get_field(f"{architecture}.attention.head_count_kv")
            self._heads = {"q_proj": heads, "k_proj": groups.contents() if groups else heads}
        elif architecture not in _GGUF_PLAIN:
            unknown = f"the order of its rows in GGUF is not known for {architecture}"
            self.quantised |= {
                name: unknown for name in self.shapes if name.endswith(("q_proj.weight", "k_proj.weight"))
            }

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
    """The weights at `where`: a folder of safetensors, a GGUF file, `tiny`, a hub id as ORG/NAME or ORG/NAME@REVISION,
    a run of this suite as RUN@STEP or RUN@ARM-from-STEP (RUN@seed-11/STEP for another than its first seed), or a PEFT
    adapter folder, on the base that it names (or on `base`, if that goes by the same name or none is named).

    ValueError where there is nothing of the kind, or it is damaged.
    """
    run, at, which = str(where).partition("@")
    if at and (Path(run).expanduser() / "checkpoints").is_dir():
        return open_weights(_of_run(Path(run).expanduser(), which), base)
    path = Path(NAMED.get(str(where), where)).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return GGUF(path)
    if path.is_dir():
        if (path / "adapter_config.json").exists():
            return Adapter(path, base)
        if any(path.glob("*.safetensors*")):
            return Safetensors(path)
        raise ValueError(f"{path} holds no safetensors file (pickled weights are not read)")
    if str(where).startswith(("package:", "hub:")):
        return open_weights(model_folder(str(where)), base)
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", str(where)):
        raise ValueError(
            f"unknown checkpoint {str(where)!r}: allowed are a folder of safetensors, a PEFT adapter folder, "
            "a .gguf file, ORG/NAME[@REVISION] on the Hugging Face hub, RUN@STEP of a run of this suite, "
            + ", ".join([*NAMED, *(f"package:{name}" for name in PACKAGES)])
        )
    return open_weights(from_hub(str(where)), base)


def _of_run(run: Path, which: str) -> Path:
    """The folder of a checkpoint of a run: the newest, if it was trained with several versions of the parameters."""
    *seed, name = which.split("/")
    seeds = [run / "checkpoints" / seed[0]] if seed else sorted((run / "checkpoints").glob("seed-*"))[:1]
    pattern = f"sft-*/checkpoint-{name}" if name.isdigit() else f"{name}-????????/checkpoint-*"
    found = [folder for one in seeds for folder in one.glob(pattern)]
    if not found:
        there = {p.parent.name.rpartition("-")[0] for p in (run / "checkpoints").glob("seed-*/*/checkpoint-*")}
        raise ValueError(f"{run} has no checkpoint {which!r}; it has those of {', '.join(sorted(there)) or 'nothing'}")
    return max(found, key=lambda p: (p.parent.stat().st_mtime, int(p.name.split("-")[1])))
