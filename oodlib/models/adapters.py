"""PEFT LoRA adapters: added to their base in float64, a matrix at a time, in files and in memory."""

from __future__ import annotations

import copy
import math
import re
from collections import defaultdict
from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oodlib.io import digest, one_line, read_object, shown
from oodlib.models.names import HEADS, KEYS, adapted, by_key, key_of, parts_of, place_of, unwrapped
from oodlib.models.weights import Safetensors, Weights, is_turned

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
PLAIN = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # initialisations that leave the base as it is
PISSA = "pissa"  # takes the leading directions out of the base
VARIANTS = (
    "use_qalora", "use_bdlora", "layer_replication", "kasa_config", "monteclora_config", "velora_config",
    "arrow_config", "alora_invocation_tokens", "target_parameters",
)  # fmt: skip
NUMBERS = {"lora_alpha": 8, "use_rslora": False, "use_dora": False}  # settings, and what they are where none is given


def read_settings(folder: Path) -> dict[str, Any]:
    """An adapter's configuration. ValueError naming the kind of one that is more than LoRA, or is none of PEFT's."""
    file, settings = folder / CONFIG, read_object(folder / CONFIG)
    if (kind := settings.get("peft_type")) != "LORA":
        if kind is None:
            by = "mlx-lm" if "fine_tune_type" in settings else "another library"
            raise ValueError(f"{file} is of {by}: it has no peft_type, and only PEFT's adapters are read")
        raise ValueError(f"{folder} is an adapter of type {kind}; only plain LoRA can be added to its base")
    start = settings.get("init_lora_weights", True)
    if variants := [name for name in VARIANTS if settings.get(name)]:
        variant = f"LoRA with {', '.join(variants)}"
    else:
        variant = None if start in (*PLAIN, PISSA) else f"LoRA with {start} initialisation"
    if variant:
        raise ValueError(f"{folder} is an adapter of type {variant}; only plain LoRA can be added to its base")
    patterns = settings.get("alpha_pattern") or {}
    wrong = {name: settings.get(name, default) for name, default in NUMBERS.items()}
    wrong = {name: value for name, value in wrong.items() if not _is_number(value)}
    if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
        wrong["alpha_pattern"] = patterns
    if wrong:
        name, value = next(iter(wrong.items()))
        expected = "numbers by module" if name == "alpha_pattern" else "a number"
        raise ValueError(f"{file}: {name} = {shown(value)}: expected {expected}")
    return {**NUMBERS, **settings, "alpha_pattern": patterns}


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # more than a float can hold
        return False


def base_of(folder: Path) -> str | None:
    """The base that an adapter names, as NAME@REVISION where it names a revision; None where it names none.

    ValueError for anything but names.
    """
    settings = read_object(folder / CONFIG)
    named, revision = (settings.get(name) for name in ("base_model_name_or_path", "revision"))
    for name, value in (("base_model_name_or_path", named), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{folder / CONFIG}: {name} = {shown(value)}: expected a name")
    local = named and (Path(named).expanduser().exists() or "@" in named)
    return f"{named}@{revision}" if named and revision and not local else named or None


class Adapter(Weights):
    """A PEFT LoRA folder added to its base: W + scale B A, with DoRA's magnitudes and PiSSA's base where it has them.

    Whole weights that it holds (modules_to_save) take the place of the base's. What has no place in the base, such as a
    head of a tied one, is left out with a remark.
    ValueError: what `read_settings` refuses; a change of a layer that the base does not hold, or half of one.
    """

    def __init__(self, folder: Path, base: Weights, remarks: dict[str, str] | None = None):
        self.path, self.base, self.settings = folder, base, read_settings(folder)
        if not (folder / FILE).exists():
            raise ValueError(f"{folder} holds no {FILE} (pickled weights are not read)")
        self.low_rank, self.remarks = Safetensors(folder, FILE), dict(remarks or {})
        self.shapes, self.quantised = dict(base.shapes), dict(base.quantised)
        self.rounded = base.rounded
        if beside := [file.name for file in sorted(folder.glob("*.safetensors")) if file.name != FILE]:
            self.remarks[", ".join(beside)] = f"not read, for {FILE} lies beside it and belongs to {base.path}"
        self._parts: dict[str, dict[str | None, str]] = defaultdict(dict)
        self._modules: dict[str, str] = {}  # what the adapter itself calls the module of a tensor
        grouped = [by_key(base.shapes, key) for key in KEYS]
        for name, shape in self.low_rank.shapes.items():
            target, part = adapted(name)
            places = [of.get(key(target), []) for key, of in zip(KEYS, grouped, strict=True)]
            here = [target] if target in base.shapes else next((place for place in places if len(place) == 1), [])
            if not here and len(renamed := self._renamed.get(key_of(target), [])) == 1:
                here = renamed
            if here:
                if part in self._parts[here[0]]:
                    both = f"{self._parts[here[0]][part]} and {name}"
                    raise ValueError(f"{folder / FILE} holds more than one adapter ({both}): keep each in a folder")
                self._parts[here[0]][part] = name
                self._modules[here[0]] = target.removesuffix(".weight").removesuffix(".bias")
                if part is None:
                    self.shapes[here[0]] = shape  # with new tokens it has more rows
                    self.quantised.pop(here[0], None)
            else:
                self._without_place(target, part, name, shape)
        for name in list(self._parts):
            self._check(name, self._parts[name])

    @cached_property
    def _renamed(self) -> dict[Hashable, list[str]]:
        """The base's names by what they are called in memory; only where they are needed, for it takes seconds."""
        return by_key(self.base.shapes, lambda name: key_of(self.base.in_memory(name)))

    def _check(self, name: str, parts: dict[str | None, str]) -> None:
        """ValueError unless the parts of a tensor's change are whole and fit together."""
        file, shapes, halves = self.path / FILE, self.low_rank.shapes, {"A", "B"} & parts.keys()
        of_weight = self._parts.get(f"{name.removesuffix('.bias')}.weight", {}) if name.endswith(".bias") else parts
        if halves and not {"A", "B"} <= of_weight.keys():
            raise ValueError(f"{self.path} holds only half of the change of {name}")
        if "A" in parts and self.settings["use_dora"] and "magnitude" not in parts:
            raise ValueError(f"{self.path} holds no magnitudes (DoRA) of {name}")
        if unread := [low for low in parts.values() if low in self.low_rank.quantised]:
            raise ValueError(
                f"{file}: {unread[0]} holds no floating-point numbers ({self.low_rank.quantised[unread[0]]})"
            )
        if "rows" in parts and max(self._rows(name), default=0) >= self.shapes[name][0]:
            del parts["rows"]
            self.remarks[name] = f"new rows, which {self.base.path} does not hold: left out"
        if "rows" in parts and len(self._rows(name)) != shapes[parts["rows"]][0]:
            raise ValueError(f"{file}: not as many rows of {name} as trainable_token_indices names")
        if "A" in parts:
            A, B, weight = shapes[parts["A"]], shapes[parts["B"]], self.shapes[name]
            fits = len(A) == len(B) == 2 and B[1] == A[0] > 0 and (B[0], A[1]) in (weight, weight[::-1])
            outside = (place := place_of(name)) is None or place.layer is None
            if not fits and (len(weight) > 2 or (outside and len(A) == 2 and {A[1], B[0]} & {*weight})):
                what = "a convolution" if len(weight) > 2 else "more rows than the base has"
                self.remarks[name] = f"changed by the adapter, but {what}: left out"
                for low in "AB":
                    del parts[low]
            elif not fits and name not in self.quantised:
                raise ValueError(f"{file}: the change of {name} does not fit its {weight}: B is {B}, A is {A}")

    def _without_place(self, target: str, part: str | None, name: str, shape: tuple[int, ...]) -> None:
        place = place_of(target)
        if part is None and (place is None or place.layer is None):
            self.shapes[target], self._parts[target][None] = shape, name
            tied = " (tied to the embedding)" * bool(place and place.module in HEADS)
            self.remarks[target] = f"the adapter's own: {self.base.path} does not hold it{tied}"
        elif place is None or place.layer is None or part == "rows" or target.endswith(".bias"):
            self.remarks[target] = f"changed by the adapter, but {self.base.path} does not hold it: left out"
        elif pieces := sorted(n for n in self.base.shapes if _is_piece(n, target)):
            raise ValueError(
                f"{self.path} changes {target}, which {self.base.path} holds as {pieces[0]}, quantised or joined with "
                "others: only to a plain weight can it be added"
            )
        elif key_of(target) in {key_of(name) for name in self.base.matrices} | {
            part for name in self.base.matrices for part in parts_of(key_of(name))
        }:
            self.remarks[target] = f"changed by the adapter, but {self.base.path} keeps it in one with others: left out"
        else:
            raise ValueError(f"{self.path} changes {target}, which {self.base.path} does not hold: is that its base?")

    def in_memory(self, name: str) -> str:
        return self.base.in_memory(name)

    @cached_property
    def mark(self) -> str:
        configuration = (self.path / CONFIG).read_text(encoding="utf-8")
        return digest([self.low_rank.mark, self.base.mark, configuration])

    def tensor(self, name: str) -> Tensor:
        parts = self._parts.get(name, {})
        weight = self.low_rank.tensor(parts[None]) if None in parts else self.base.tensor(name)
        if "rows" in parts:
            rows = self.low_rank.tensor(parts["rows"])
            weight = weight.to(torch.promote_types(weight.dtype, rows.dtype), copy=True)
            weight[self._rows(name)] = rows.to(weight.dtype)
        if "B" not in parts:
            return weight
        B = self.low_rank.tensor(parts["B"]).double()
        if "A" not in parts:  # of a bias
            rank = self.low_rank.shapes[self._parts[f"{name.removesuffix('.bias')}.weight"]["A"]][0]
            return weight.double() + self._scale(name, rank) * B
        A = self.low_rank.tensor(parts["A"]).double()
        turned = (len(B), A.shape[1]) != tuple(weight.shape)
        if len(B) == A.shape[1]:  # square: of an embedding PEFT's change is always turned
            turned = "lora_embedding_" in parts["A"] or is_turned(self.base.shapes, name)
        scale = self._scale(name, len(A))
        before = weight.double().T if turned else weight.double()
        if self.settings.get("init_lora_weights") == PISSA and "lora_embedding_" not in parts["A"]:
            U, s, V_t = torch.linalg.svd(before, full_matrices=False)
            before = before - (U[:, : len(A)] * s[: len(A)]) @ V_t[: len(A)]
            before = before.to(weight.dtype).double()  # as PEFT keeps it
        after = before + scale * (B @ A)
        if "magnitude" in parts:
            magnitude = self.low_rank.tensor(parts["magnitude"]).double().flatten()
            after = after * (magnitude / after.norm(dim=1)).unsqueeze(1)
        return after.T if turned else after

    def _item(self, name: str, index: int) -> Tensor:
        return super()._item(name, index) if name in self._parts else self.base._item(name, index)

    def _rows(self, name: str) -> list[int]:
        """The rows of an embedding that are trained on their own (PEFT's trainable tokens)."""
        indices = self.settings.get("trainable_token_indices")
        if isinstance(indices, dict):
            indices = next((rows for module, rows in indices.items() if self._modules[name].endswith(module)), None)
        if not isinstance(indices, list) or not all(type(i) is int and i >= 0 for i in indices):
            raise ValueError(f"{self.path / CONFIG}: trainable_token_indices = {indices!r}: expected rows of {name}")
        return indices

    def _scale(self, name: str, rank: int) -> float:
        module, alpha = self._modules[name], self.settings["lora_alpha"]
        for pattern, value in self.settings["alpha_pattern"].items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    alpha = value
                    break
            except re.error as error:
                raise ValueError(f"{self.path / CONFIG}: alpha_pattern {pattern!r}: {error}") from None
        return alpha / (rank**0.5 if self.settings["use_rslora"] else rank)


def _is_piece(name: str, target: str) -> bool:
    """Whether a tensor of a base stands in the place of a weight: MODULE.qweight of MODULE.weight."""
    parent, _, last = unwrapped(name).rpartition(".")
    return last not in ("weight", "bias") and key_of(f"{parent}.weight") == key_of(target)


# ---- in memory -----------------------------------------------------------------------------------------


def is_wrapped(module: nn.Module) -> bool:
    """Whether PEFT has put an adapter around a module."""
    return hasattr(module, "base_layer") and hasattr(module, "merge")


@torch.no_grad()
def merged(module: nn.Module) -> dict[str, Tensor]:
    """The parameters, by name, of the module that an adapter is around, adapters counted in, in float64.

    Of any kind that PEFT can merge. ValueError naming the kind of any other.
    """
    copied = copy.deepcopy(module)
    copied = (copied.cpu() if any(p.device.type == "mps" for p in copied.parameters()) else copied).double()
    for layer in reversed([part for part in copied.modules() if is_wrapped(part)]):  # the innermost first
        if layer.merged or layer.disable_adapters:
            continue
        for adapter in getattr(layer, "lora_bias", {}):
            layer.lora_bias[adapter] = layer.lora_bias[adapter] and layer.get_base_layer().bias is not None
        try:
            layer.merge()
        except Exception as error:  # whatever a kind says that it cannot
            kind = type(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
            raise ValueError(f"adapted by {kind}, which cannot be merged: {one_line(error)}") from None
    return {unwrapped(name): weight.detach() for name, weight in copied.get_base_layer().named_parameters()}


@torch.no_grad()
def merge(model: Any) -> nn.Module:
    """The base of a PEFT model with the adapters added in float64, each weight in its own dtype again."""
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if is_wrapped(module) and not path.startswith(inside or "\0"):
            inside += (f"{path}.",)
            weights = merged(module)
            for name, parameter in module.get_base_layer().named_parameters():
                parameter.copy_(weights[unwrapped(name)])
    return model.unload()
