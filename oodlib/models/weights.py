"""The tensors of a checkpoint, read one at a time; those of a folder of safetensors, which is memory-mapped."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from oodlib.io import digest, one_line, read_object, refuse_pipe
from oodlib.models.names import is_of_adapter, is_stack, item_of, place_of

if TYPE_CHECKING:
    from transformers.core_model_loading import WeightRenaming

FLOATS = ("F64", "F32", "F16", "BF16")  # what safetensors and GGUF call numbers that are not quantised
LFS = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".npz", ".npy",
    ".pkl", ".pickle", ".tflite", ".distcp", ".nemo", ".ot", ".onnx_data", ".llamafile", ".pdparams", ".mlmodel",
    ".keras", ".pb",
}  # fmt: skip
VOCABULARY = re.compile(  # what such a file is called, if it ends as weights may
    r"(?!.*(?:embed|state_dict|model)).*(?:vocab|token|spm|sentencepiece|bpe|dict|merges).*\.(?:bin|pkl|pickle|msgpack)"
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
JOIN = " + "  # between the names of matrices that are read one above the other


def device() -> torch.device:
    """Where this process puts weights: its GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


class Weights(ABC):
    """The tensors of a checkpoint by name. `shapes` is name -> shape.

    quantised: those that cannot be read as numbers, with their type or the reason. rounded: those that can be read,
    but were quantised. remarks: what else there is to say, by name.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    quantised: dict[str, str]
    rounded: Mapping[str, str] = MappingProxyType({})
    remarks: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One tensor, read now, in its own dtype."""

    @cached_property
    def matrices(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors of two and more dimensions; a stack of experts as its matrices, "stack[3]"."""
        shapes = {}
        for name, shape in self.shapes.items():
            if is_stack(name, shape):
                shapes |= {f"{name}[{i}]": shape[1:] for i in range(shape[0])}
            elif len(shape) > 1:
                shapes[name] = shape
        return shapes

    def in_memory(self, name: str) -> str:
        """What transformers calls a tensor, or a matrix of a stack, once it is loaded."""
        return name

    def matrix(self, name: str) -> Tensor:
        """A tensor, one matrix of a stack ("stack[3]"), or several matrices one above the other ("a + b")."""
        if name in self.shapes:
            return self.tensor(name)
        if JOIN in name:
            return torch.cat([self.matrix(part) for part in name.split(JOIN)])
        return self._item(*item_of(name))

    def _item(self, name: str, index: int) -> Tensor:
        return self.tensor(name)[index]

    @cached_property
    def mark(self) -> str:
        """Changes when the files do (names, sizes, times of change)."""
        files = [(file.name, (about := file.stat()).st_size, about.st_mtime_ns) for file in self.files]
        return digest([str(self.path.resolve()), *files])

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return [self.path]


class Safetensors(Weights):
    """A folder with one safetensors file, or several with an index; or the one file `only` of it.

    ValueError, one line with the file's name: a file that is missing, cut off, damaged, or not fetched by Git LFS.
    """

    def __init__(self, folder: Path, only: str | None = None):
        self.path, self.shapes, self.quantised = folder, {}, {}
        self.shards, self._files = [folder / only] if only else self._shards(), {}
        for file in self.shards:
            refuse_pointer(file)
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118
                        if name in self._files:
                            raise ValueError(f"{name} stands in {self._files[name].name} and in {file}: which is it?")
                        piece = tensors.get_slice(name)
                        self._files[name], self.shapes[name] = file, tuple(piece.get_shape())
                        if piece.get_dtype() not in FLOATS:
                            self.quantised[name] = piece.get_dtype()
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file} is not a whole safetensors file: {one_line(error)}") from None
        if not only:
            self._look_beside()
        if not only and (parts := [name for name in self.shapes if is_of_adapter(name)]):
            raise ValueError(
                f"{self._files[parts[0]]} holds an adapter that is not merged into its model ({parts[0]}): merge it, "
                "or give the folder of the adapter alone"
            )

    @property
    def files(self) -> list[Path]:
        return self.shards

    def in_memory(self, name: str) -> str:
        stack, index = item_of(name)
        for renaming in self._renamings:
            stack, _ = renaming.rename_source_key(stack)
        return stack if index is None else f"{stack}[{index}]"

    @cached_property
    def _renamings(self) -> list[WeightRenaming]:
        """How transformers renames the tensors of this family's files, by the types that the configuration names."""
        try:
            config = read_object(self.path / "config.json")
        except (OSError, ValueError):
            return []
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # late: seconds
        from transformers.core_model_loading import WeightRenaming
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
        types = [kind for part in parts if isinstance(kind := part.get("model_type"), str)]
        classes = [name for kind in types if isinstance(name := MODEL_MAPPING_NAMES.get(kind), str)]
        tables = (get_checkpoint_conversion_mapping(name) or [] for name in dict.fromkeys((*classes, *types)))
        return [each for table in tables for each in table if isinstance(each, WeightRenaming)]

    def _look_beside(self) -> None:
        """Remarks on other files of weights in the folder; ValueError for shards or tensors that are missing."""
        read = {shard.name for shard in self.shards}
        others = [file.name for file in sorted(self.path.glob("*.safetensors")) if file.name not in read]
        self.remarks = dict.fromkeys(others, f"not read: the model is {', '.join(sorted(read)[:2])}")
        if (index := self.path / INDEX).exists() and WHOLE not in read:
            if lost := [name for name in read_object(index)["weight_map"] if name not in self.shapes]:
                raise ValueError(f"{index} names {lost[0]}, which none of its files holds")
        elif sets := {match.groups()[::2] for name in read if (match := _SHARD.fullmatch(name))}:
            for stem, count in sorted(sets):
                wanted = [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
                if missing := [name for name in wanted if name not in read]:
                    raise ValueError(f"{self.path} holds a part of a model: {', '.join(missing[:3])} missing")

    def _shards(self) -> list[Path]:
        """As transformers chooses: model.safetensors, else what its index names; else every file there is."""
        if (whole := self.path / WHOLE).exists():
            return [whole]
        if not (index := self.path / INDEX).exists():
            return sorted(self.path.glob("*.safetensors"))
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index} has no weight_map, which says which file holds which tensor")
        shards = [self.path / name for name in sorted(set(names.values()))]
        if outside := [name for name in names.values() if Path(name).is_absolute() or ".." in Path(name).parts]:
            raise ValueError(f"{index} names a file outside its folder: {outside[0]}")
        if missing := [shard.name for shard in shards if not shard.exists()]:
            raise ValueError(f"{self.path} lacks {', '.join(missing)}, which {index.name} names")
        return shards

    def tensor(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def _item(self, name: str, index: int) -> Tensor:
        with safe_open(self._files[name], framework="pt") as tensors:
            return tensors.get_slice(name)[index]


def turned_by_bias(shapes: Mapping[str, tuple[int, ...]], name: str) -> bool | None:
    """Whether a weight, or each of a stack of experts', is kept as [in, out]: its bias has as many entries as it has
    outputs. None where it has no bias, or is square."""
    *_, rows, columns = ("", "", *shapes[name])
    bias = shapes.get(f"{name.removesuffix('.weight')}.bias") or shapes.get(f"{name}_bias")
    if not bias or len(bias) + 1 != len(shapes[name]) or rows == columns or bias[-1] not in (rows, columns):
        return None
    return bias[-1] == columns


def is_turned(shapes: Mapping[str, tuple[int, ...]], name: str) -> bool:
    """Whether a weight is kept as [in, out] (GPT-2's Conv1D), not as [out, in]; shapes: of all tensors, by name.

    Of a square one its neighbours tell, the nearest first.
    """
    place, around = place_of(name), []
    if place and place.layer is not None:
        path = name.removesuffix(".weight")
        layer, parent = path.removesuffix(place.path), path.rpartition(".")[0]
        around = sorted((n for n in shapes if n.startswith(layer)), key=lambda n: (not n.startswith(parent), n))
    told = (turned_by_bias(shapes, weight) for weight in (name, *around))
    return next((turned for turned in told if turned is not None), False)


def refuse_pointer(file: Path) -> None:
    """ValueError where a file cannot be opened, or is only Git LFS's pointer to one."""
    try:
        refuse_pipe(file)
        with file.open("rb") as opened:
            begins = opened.read(len(LFS))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    if begins == LFS:
        raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`")


def beside(folder: Path, shards: list[Path]) -> tuple[list[Path], list[Path]]:
    """What lies in a model's folder beside its shards: the files to keep, relative to it, and what is left out.

    Left out are other weights, their index, and sub-folders that are models of their own. Hidden files are neither.
    ValueError for a file to keep that cannot be copied, such as a link to nothing.
    """
    kept, left = [], []
    for file in sorted(file for file in _files(folder) if file not in shards):
        name = file.relative_to(folder)
        models = [parent for parent in name.parents[:-1] if is_model(folder / parent)]
        if any(part.startswith(".") for part in name.parts):
            continue
        if models:
            left += [models[-1]] * (models[-1] not in left)
        else:
            (left if _is_weights(file, shards) else kept).append(name)
    if broken := [name for name in kept if not (folder / name).is_file()]:
        raise ValueError(f"{folder / broken[0]} cannot be copied: it is a link to nothing, or no file")
    return kept, left


def _files(folder: Path) -> Iterator[Path]:
    """Every file under a folder, also in sub-folders that are links; each folder once."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names)


def is_model(folder: Path) -> bool:
    return (folder / "config.json").exists() and any(_is_weights(file, []) for file in folder.iterdir())


def _is_weights(file: Path, shards: list[Path]) -> bool:
    """Whether a file holds weights, or is the index of weights other than those in `shards`."""
    if file.name.endswith(".index.json"):
        return file.name != INDEX or file.with_name(WHOLE) in shards
    name, stem = file.name.lower(), file.stem.lower()
    if file.suffix.lower() in (".npy", ".npz"):  # of voices and filters too
        return "weight" in stem or "model" in stem
    weights = file.suffix.lower() in WEIGHT_FILES or ".safetensors" in name
    return weights and not VOCABULARY.fullmatch(name)
