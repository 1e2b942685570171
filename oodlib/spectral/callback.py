"""Rotation while training: a callback for any transformers or TRL trainer.

    RotationCallback("rotation.parquet", every=100).attach(trainer)

measures every 100 updates, and after the last, how far the weight matrices' leading singular vectors are turned from
the start, and how much their singular values changed; writes it to a table and to the trainer's loggers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from oodlib.io import write_whole
from oodlib.models.checkpoints import Weights, open_text
from oodlib.models.names import MODULES, is_projection, layer_of
from oodlib.spectral.comparison import count_of
from oodlib.spectral.svd import Spectrum, compare, spectrum

COLUMNS = ["step", "reference", "matrix", "layer", "module", "k", "metric", "value"]
HELD = 5e7  # matrix entries up to which the references' spectra are kept in memory (8 bytes an entry, twice over)


class RotationCallback(TrainerCallback):
    """Measures rotation against the start of training and against saved checkpoints while a model is trained.

    file: the parquet table, with the columns `COLUMNS`; metrics are angle_left and angle_right (mean principal angle
    of the leading k, radians), value_change (mean relative change of the leading k singular values) and change_ratio
    (Frobenius norm of the change, relative). every: updates between two measurements, or the updates at which to
    measure; where training ends is measured too. modules: glob patterns of module names, as of `oodlib compare`. k:
    directions, a number or a share. start: the checkpoint to measure against; by
    default the weights with which training starts, so give it where a run may be resumed. references: more
    checkpoints by name, such as {"peak": "outputs/.../checkpoint-100"}. LoRA adapters are counted into the weights.
    Above HELD matrix entries the references are decomposed anew each time, so that memory stays small.
    ValueError, at once: a k or an `every` that is none. When training begins: a checkpoint that cannot be opened, or
    one of whose matrices is lacking, of another shape, quantised or not finite; no matrix that matches; weights that
    are sharded, quantised or adapted by DoRA.
    """

    def __init__(
        self,
        file: str | Path,
        every: int | Collection[int] = 100,
        modules: Sequence[str] = MODULES,
        k: str | int = "20%",
        start: str | Path | None = None,
        references: Mapping[str, str | Path] | None = None,
    ):
        count_of(k, 1)
        self.file, self.every, self.modules, self.k = Path(file), _every(every), tuple(modules), k
        self._given = ({} if start is None else {"start": start}) | dict(references or {})
        self._references: dict[str, Weights | dict[str, Tensor]] = {}
        self._spectra: dict[tuple[str, str], Spectrum] = {}
        self._rows: list[tuple] = []
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> RotationCallback:
        """Add it to a trainer, whose loggers then get the means over all matrices."""
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self._references, self._spectra, self._rows = {}, {}, []
        own = {name: weight.detach() for name, weight in self._matrices(model)}
        if not own:
            raise ValueError(f"no weight matrix of the model matches modules {', '.join(self.modules)}")
        self._references = {name: open_text(where) for name, where in self._given.items()}
        for reference, weights in self._references.items():
            for name, weight in own.items():
                if wrong := _unfit(weights, name, tuple(weight.shape)):
                    raise ValueError(f"the reference {reference!r} ({self._given[reference]}) {wrong}")
        if "start" not in self._references:
            if state.global_step:
                raise ValueError("a resumed training does not know its start any more: give RotationCallback `start`")
            start = {name: weight.to("cpu", copy=True) for name, weight in own.items()}
            self._references = {"start": start, **self._references}
        if state.global_step and self.file.exists():
            old = pd.read_parquet(self.file)
            self._rows = list(old[old["step"] <= state.global_step].itertuples(index=False, name=None))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        if state.is_world_process_zero and self._due(step):
            log = control.should_log  # which our own row would take away
            self._measure(model, step)
            control.should_log = log

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero and state.global_step and not self._due(state.global_step):
            self._measure(model, state.global_step)

    def _due(self, step: int) -> bool:
        return step % self.every == 0 if isinstance(self.every, int) else step in self.every

    @torch.no_grad()
    def _measure(self, model: nn.Module, step: int) -> None:
        rows = []
        for name, weight in self._matrices(model):
            layer, module = layer_of(name)
            for reference in self._references:
                before = self._before(reference, name, weight)
                rank = len(before.values)
                k = min(count_of(self.k, rank), rank)
                numbers = _numbers(before, weight, k, name)
                rows += [(step, reference, name, layer, module, k, m, float(v)) for m, v in numbers.items()]
        self._rows += rows
        table = pd.DataFrame(self._rows, columns=COLUMNS)
        write_whole(self.file, lambda path: table.to_parquet(path, index=False))
        if self._trainer:
            means = pd.DataFrame(rows, columns=COLUMNS).groupby(["reference", "metric"])["value"].mean()
            # Not the trainer's own log: TRL's would spend the metrics that it has gathered for its next row.
            Trainer.log(self._trainer, {f"rotation/{name}/{metric}": v for (name, metric), v in means.items()})

    def _before(self, reference: str, name: str, weight: Tensor) -> Spectrum:
        if (reference, name) in self._spectra:
            return self._spectra[reference, name]
        source = self._references[reference]
        before = source[name] if isinstance(source, dict) else source.tensor(name)
        found = spectrum(before.to(weight.device), name)
        if sum(s.matrix.numel() for s in self._spectra.values()) + weight.numel() <= HELD:
            self._spectra[reference, name] = found
        return found

    def _matrices(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The chosen weight matrices of a model, adapters counted in, under the names that a checkpoint gives them."""
        for path, module in model.named_modules():
            inner: Any = getattr(module, "base_layer", module)
            weight = getattr(inner, "weight", None)
            name = f"{_plain(path)}.weight"
            place = layer_of(name)
            if path.endswith(".base_layer") or not isinstance(weight, Tensor) or not place:
                continue
            if not is_projection(place[1], self.modules):
                continue
            if weight.ndim != 2 or not weight.numel() or hasattr(weight, "full_tensor"):
                raise ValueError(f"{name} is sharded (FSDP, ZeRO-3), which RotationCallback cannot measure")
            if not weight.is_floating_point():
                raise ValueError(f"{name} is quantised ({weight.dtype}), which RotationCallback cannot measure")
            if any(getattr(module, "use_dora", {}).values()):
                raise ValueError(f"{name} is adapted by DoRA, which RotationCallback cannot measure")
            if inner is not module and not module.merged:
                for adapter in module.active_adapters:
                    if adapter in module.lora_A:
                        weight = weight + module.get_delta_weight(adapter)
            yield name, weight.cpu() if weight.device.type == "mps" else weight  # which has no float64


def _every(value: int | Collection[int]) -> int | frozenset[int]:
    """The interval, or the updates, as given; ValueError for what is neither."""
    several = isinstance(value, Collection)
    numbers = list(value) if several else [value]
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in numbers)
    if not numbers or not whole or min(numbers) < (0 if several else 1):
        raise ValueError(f"every must be a whole number from 1, or several from 0, got {value!r}")
    return frozenset(map(int, numbers)) if several else int(value)


def _unfit(weights: Weights, name: str, shape: tuple[int, ...]) -> str | None:
    """Why a reference's matrix cannot be measured against, if it cannot."""
    if name not in weights.shapes:
        return f"lacks {name}"
    if tuple(weights.shapes[name]) != shape:
        return f"has {name} of shape {tuple(weights.shapes[name])}, not {shape}"
    if name in weights.quantised:
        return f"holds {name} quantised ({weights.quantised[name]})"
    return None if weights.tensor(name).isfinite().all() else f"has NaN or inf in {name}"


def _plain(path: str) -> str:
    """A module's path without what wrappers put before it."""
    while (shorter := re.sub(r"^(?:module|_orig_mod|base_model\.model)\.", "", path)) != path:
        path = shorter
    return path


def _numbers(before: Spectrum, weight: Tensor, k: int, name: str) -> dict[str, float]:
    if not torch.isfinite(weight).all():  # training has gone wrong; that is for its own log to say
        return dict.fromkeys(("angle_left", "angle_right", "value_change", "change_ratio"), float("nan"))
    found = compare(before, weight, k, name)
    return {
        "angle_left": found.angles_left.mean(),
        "angle_right": found.angles_right.mean(),
        "value_change": found.relative_change[:k].mean(),
        "change_ratio": float((found.change**2).sum() / (found.values0**2).sum()) ** 0.5,
    }
