"""PEFT LoRA adapters on their base: W + scale B A, formed a matrix at a time."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from peft import LoraConfig, PeftConfig
from torch import Tensor

from oodlib.io import digest
from oodlib.models.names import adapted
from oodlib.models.weights import Safetensors, Weights

PLAIN = (True, False, "gaussian", "eva", "orthogonal", "mica")  # initialisations of LoRA that leave the base as it is
VARIANTS = ("use_dora", "use_qalora", "use_bdlora", "layer_replication", "kasa_config", "monteclora_config")


class Adapter(Weights):
    """A PEFT LoRA folder added to its base.

    ValueError for adapters that do more than that: other kinds and variants (DoRA and the like), initialisations that
    may change the base (all but `PLAIN`, such as PiSSA or LoRA-GA), and any tensor that would be left out.
    """

    def __init__(self, folder: Path, base: Weights):
        self.path, self.base, self.config = folder, base, PeftConfig.from_pretrained(str(folder))
        if variant := _beyond_lora(self.config):
            raise ValueError(f"{folder} is an adapter of type {variant}; only plain LoRA can be added to its base")
        self.low_rank = Safetensors(folder)
        if not self.low_rank.shapes:
            raise ValueError(f"{folder} holds no adapter_model.safetensors (pickled weights are not read)")
        self.shapes, self.quantised = base.shapes, base.quantised
        self._parts: dict[str, dict[str | None, str]] = {}
        for name in self.low_rank.shapes:
            target, part = adapted(name)  # part None: the whole weight (modules_to_save)
            if target not in base.shapes:
                raise ValueError(f"{folder} changes {target}, which {base.path} does not hold: is that its base?")
            self._parts.setdefault(target, {})[part] = name
        if broken := [name for name, parts in self._parts.items() if len({"A", "B"} & set(parts)) == 1]:
            raise ValueError(f"{folder} holds only half of the change of {', '.join(broken)}")

    @cached_property
    def mark(self) -> str:
        configuration = (self.path / "adapter_config.json").read_text(encoding="utf-8")
        return digest([self.low_rank.mark, self.base.mark, configuration])

    def tensor(self, name: str) -> Tensor:
        parts = self._parts.get(name, {})
        if None in parts:
            return self.low_rank.tensor(parts[None])
        weight = self.base.tensor(name)
        if not parts:
            return weight
        A, B = (self.low_rank.tensor(parts[part]).double() for part in "AB")
        change = self._scale(name.removesuffix(".weight"), len(A)) * (B @ A)
        return weight.double() + (change.T if self.config.fan_in_fan_out else change)

    def _scale(self, module: str, rank: int) -> float:
        patterns = self.config.alpha_pattern or {}
        alpha = next((a for p, a in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), self.config.lora_alpha)
        return alpha / (rank**0.5 if self.config.use_rslora else rank)


def _beyond_lora(config: PeftConfig) -> str | None:
    """What an adapter is, if it is more than plain LoRA."""
    if not isinstance(config, LoraConfig):
        return config.peft_type.value
    if variants := [name for name in VARIANTS if getattr(config, name, None)]:
        return f"LoRA with {', '.join(variants)}"
    return None if config.init_lora_weights in PLAIN else f"LoRA with {config.init_lora_weights} initialisation"
