"""Rotation while training: a callback for any transformers or TRL trainer.

    RotationCallback("rotation.parquet", every=100).attach(trainer)

measures every 100 updates, and after the last, how far the weight matrices' leading singular vectors are turned from
the start, and how much their singular values changed; writes it to a table and to the trainer's loggers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from oodlib.io import write_whole
from oodlib.models.checkpoints import open_text
from oodlib.models.names import MODULES, Place, place_of, unwrapped
from oodlib.models.pairs import unfit
from oodlib.spectral.angles import compare
from oodlib.spectral.svd import Spectrum, as_matrix, count_of, spectrum

METRICS = ("angle_left", "angle_right", "value_change", "change_ratio")
COLUMNS = ["step", "reference", "matrix", "layer", "module", "k", "metric", "value"]
HELD = 5e7  # matrix entries up to which the references' spectra are kept in memory (8 bytes an entry, twice over)


class RotationCallback(TrainerCallback):
    """Measures rotation against the start of training and against saved checkpoints while a model is trained.

    file: the parquet table, with the columns `COLUMNS`; metrics are angle_left and angle_right (mean principal angle
    of the leading k, radians), value_change (mean relative change of the leading k singular values) and change_ratio
    (Frobenius norm of the change, relative). every: updates between two measurements, or the updates at which to
    measure; where training ends is measured too. modules: glob patterns of module names, as of `oodlib compare`. k:
    directions, a number or a share. start: the checkpoint to measure against; by default the weights with which
    training starts, so give it where a run may be resumed. references: more checkpoints by name, such as
    {"peak": "outputs/.../checkpoint-100"}. LoRA adapters are counted into the weights. Above HELD matrix entries the
    references are decomposed anew each time, so that memory stays small.
    ValueError, at once: a k or an `every` that is none. When training begins: a checkpoint that cannot be opened, or a
    matrix of it that is missing, of another shape, quantised or not finite; no matrix that matches; weights that are
    sharded, quantised or adapted by DoRA.
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
        if not (isinstance(every, Collection) and every and not isinstance(every, str)) and (
            type(every) is not int or every < 1
        ):
            raise ValueError(f"every must be a whole number from 1, or several updates, got {every!r}")
        self.file, self.every, self.modules, self.k = Path(file), every, tuple(modules), k
        self._given = ({} if start is None else {"start": start}) | dict(references or {})
        self._references: dict[str, Callable[[str], Tensor]] = {}  # the tensor of a name, by reference
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
        start = {name: weight.detach() for name, _, weight in self.matrices(model)}
        if not start:
            raise ValueError(f"no weight matrix of the model matches modules {', '.join(self.modules)}")
        if "start" not in self._given:
            if state.global_step:
                raise ValueError("a resumed training does not know its start any more: give RotationCallback `start`")
            kept = {name: weight.to("cpu", copy=True) for name, weight in start.items()}
            self._references["start"] = kept.__getitem__
        for reference, where in self._given.items():
            weights = open_text(where)
            for name, weight in start.items():
                if problem := unfit(weights, name, tuple(weight.shape)):
                    raise ValueError(f"the reference {reference!r} ({where}): {name}: {problem}")
                as_matrix(weights.tensor(name), f"the reference {reference!r} ({where}): {name}")
            self._references[reference] = weights.tensor
        if state.global_step and self.file.exists():
            old = pd.read_parquet(self.file)
            self._rows = list(old[old["step"] <= state.global_step].itertuples(index=False, name=None))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        if state.is_world_process_zero and self._due(step):
            log = control.should_log  # which our own row would take away
            self.measure(model, step)
            control.should_log = log

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero and state.global_step and not self._due(state.global_step):
            self.measure(model, state.global_step)

    def _due(self, step: int) -> bool:
        return step % self.every == 0 if isinstance(self.every, int) else step in self.every

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> None:
        """Measure the model now, log the means, and add the rows of this step to the table."""
        rows = []
        for name, place, weight in self.matrices(model):
            for reference in self._references:
                before = self._before(reference, name, weight)
                rank = len(before.values)
                k = min(count_of(self.k, rank), rank)
                values = [float("nan")] * len(METRICS)  # where training has gone wrong, which its own log shows
                if torch.isfinite(weight).all():
                    both = compare(before, weight, k, name)
                    angles = (both.angles_left.mean(), both.angles_right.mean())
                    values = [*angles, both.relative_change[:k].mean(), both.change_ratio]
                at = (step, reference, name, place.layer, place.module, k)
                rows += [(*at, metric, float(value)) for metric, value in zip(METRICS, values, strict=True)]
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
        before = spectrum(self._references[reference](name).to(weight.device), name)
        if sum(s.matrix.numel() for s in self._spectra.values()) + weight.numel() <= HELD:
            self._spectra[reference, name] = before
        return before

    def matrices(self, model: nn.Module) -> Iterator[tuple[str, Place, Tensor]]:
        """The chosen weight matrices of a model, adapters counted in, under the names that a checkpoint gives them."""
        for path, module in model.named_modules():
            inner: Any = getattr(module, "base_layer", module)
            weight, name = getattr(inner, "weight", None), f"{unwrapped(path)}.weight"
            place = place_of(name)
            chosen = place and place.layer is not None and place.fits(self.modules)
            if not chosen or not isinstance(weight, Tensor) or path.endswith(".base_layer"):
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
            yield name, place, weight.cpu() if weight.device.type == "mps" else weight  # which has no float64
