"""Rotation and drift while training: a callback for any transformers or TRL trainer.

    RotationCallback("rotation.parquet", every=100).attach(trainer)

measures every 100 updates, and after the last, how far the weight matrices' leading singular vectors are turned from
the start, and how much their singular values changed; writes it to a table and to the trainer's loggers. More measures
are chosen by name: `MEASURES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.pytorch_utils import Conv1D

from oodlib.io import read_table, write_whole
from oodlib.models.adapters import is_wrapped, merged
from oodlib.models.checkpoints import open_weights
from oodlib.models.names import Place, is_beside, is_stack, item_of, place_of, unwrapped
from oodlib.models.pairs import Partners, Turned, unfit
from oodlib.models.weights import JOIN
from oodlib.spectral.angles import compare
from oodlib.spectral.metrics import INTRUDER, TOLERANCE
from oodlib.spectral.svd import Spectrum, as_matrix, count_of, spectrum

METRICS = ("angle_left", "angle_right", "value_change", "change_ratio")  # the default
MEASURES = {  # of a matrix [m, n] against the start's; k are its leading directions
    "angle_left": "radians, mean principal angle of the leading k left directions",
    "angle_right": "the same of the right ones",
    "value_change": "mean relative change of the leading k singular values",
    "change_ratio": "Frobenius norm of the change over that of the start",
    "intruders": f"share of the leading k left directions that match none of the start's better than {INTRUDER} "
    "(arXiv:2410.21228)",
    "unchanged": f"share of the weights that changed by {TOLERANCE:g} or less (arXiv:2505.11711)",
    "unchanged_bfloat16": "share of the weights that are the same number in bfloat16 (arXiv:2505.11711)",
    "kl": "of the whole model: nats an answer, KL(start || model) over the start's own answers to `prompts` "
    "(arXiv:2509.04259)",
}
SPECTRAL = (*METRICS, "intruders")  # these need singular value decompositions
ANSWER = 64  # tokens of an answer to `prompts`, at most
COLUMNS = ["step", "reference", "matrix", "layer", "module", "k", "metric", "value"]
HELD = 5e7  # matrix entries up to which the references' spectra are kept in memory (8 bytes an entry, twice over)


class RotationCallback(TrainerCallback):
    """Measures rotation against the start of training and against saved checkpoints while a model is trained.

    file: the parquet table, with the columns `COLUMNS`. every: updates between two measurements, or the updates at
    which to measure; where training ends is measured too. modules: glob patterns of module names, as of `oodlib
    compare`; by default every matrix of a layer, those of a stack of experts one by one. k: directions, a number or a
    share. start: the checkpoint to measure against; by default the weights with which training starts, so give it where
    a run may be resumed. references: more checkpoints by name, such as {"peak": "outputs/.../checkpoint-100"}.
    adapter_base: where the base of an adapter among these lies, if not where it says. measures: names of `MEASURES`.
    prompts: texts, for the measure kl alone; as training begins the model answers each once, sampled at temperature 1,
    with ANSWER tokens at most. PEFT's adapters are counted into the weights, in float64. Above HELD matrix entries the
    references are decomposed anew each time, so that memory stays small. What is not measured, and what is to be
    said of a reference (rounded numbers, changes left out), is in `remarks`, by name, and is warned about once.
    ValueError, at once: a k, an `every` or a measure that is none; kl without prompts, or prompts without it. When
    training begins: a checkpoint that cannot be opened, or a matrix of it that is missing, of another shape, turned,
    quantised or not finite; no matrix that matches; weights that are sharded, quantised, or adapted in a way that PEFT
    cannot merge; kl in a training that is resumed, or that has no tokenizer; a file that cannot be written, or that is
    another table.
    """

    def __init__(
        self,
        file: str | Path,
        every: int | Collection[int] = 100,
        modules: Sequence[str] | None = None,
        k: str | int = "20%",
        start: str | Path | None = None,
        references: Mapping[str, str | Path] | None = None,
        adapter_base: str | Path | None = None,
        measures: Sequence[str] = METRICS,
        prompts: Sequence[str] = (),
    ):
        count_of(k, 1)
        if isinstance(measures, str) or not measures or (strange := [m for m in measures if m not in MEASURES]):
            shown = repr(measures) if isinstance(measures, str) or not measures else repr(strange[0])
            raise ValueError(f"measures: {shown} is none; a list of these: {', '.join(MEASURES)}")
        if ("kl" in measures) != bool(prompts):
            raise ValueError("prompts and the measure kl go together: give both, or neither")
        self.measures, self.prompts = tuple(measures), list(prompts)
        self._asked: list[tuple[list[int], list[int]]] = []  # the prompts and the start's answers, in tokens
        self._likely: Tensor | None = None  # the start's log-probability of each answer
        least, updates = (0, list(every)) if isinstance(every, Collection) else (1, [every])  # 0: where it starts
        if not updates or not all(isinstance(n, Integral) and type(n) is not bool and n >= least for n in updates):
            raise ValueError(f"every must be a whole number from 1, or several updates, got {every!r}")
        self.file, self.every, self.modules, self.k = Path(file), every, None if modules is None else tuple(modules), k
        self.remarks: dict[str, str] = {}
        self._adapter_base, self._last = adapter_base, 0
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

    @torch.no_grad()
    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.prompts:
            if state.global_step:
                raise ValueError("a resumed training does not know what its start said: leave out the measure kl")
            self._ask(model, processing_class)
        self._references, self._spectra, self._rows, self.remarks, self._last = {}, {}, [], {}, 0
        if "start" not in self._given and state.global_step:
            raise ValueError("a resumed training does not know its start any more: give RotationCallback `start`")
        shapes, kept = {}, {}
        for name, _, weight in self.matrices(model, self.remarks):
            shapes[name] = tuple(weight.shape)
            if "start" not in self._given:
                kept[name] = _kept(weight)
        if not shapes:
            raise ValueError(f"no weight matrix of the model matches modules {', '.join(self.modules or ['*'])}")
        if self.remarks:
            left = "; ".join(f"{name}: {reason}" for name, reason in self.remarks.items())
            warnings.warn(f"RotationCallback does not measure {left}", stacklevel=2)
        if kept:
            self._references["start"] = kept.__getitem__
        model_shapes = {unwrapped(name): tuple(weight.shape) for name, weight in model.named_parameters()}
        for reference, where in self._given.items():
            self._references[reference] = self._opened(reference, where, shapes, model_shapes)
        if state.global_step and self.file.exists():
            old = read_table(self.file, ["step", "k", "value"], ["reference", "matrix", "module", "metric"])
            if set(old.columns) != {*COLUMNS}:
                raise ValueError(f"{self.file} is no table of rotation: its columns are {', '.join(old.columns)}")
            old = old.loc[old["step"] <= state.global_step, COLUMNS]
            self._rows = list(old.itertuples(index=False, name=None))
        self._write()  # now, so that what cannot be written to is known before the first update

    def _opened(
        self,
        reference: str,
        where: str | Path,
        shapes: dict[str, tuple[int, ...]],
        model_shapes: dict[str, tuple[int, ...]],
    ) -> Callable[[str], Tensor]:
        """What reads the matrices of a checkpoint under the model's names; it has all of them.

        shapes: those of the matrices to measure; model_shapes: those of all the model's parameters. What the reader of
        the checkpoint has to say goes into `remarks`, and is warned about.
        """
        weights, names = open_weights(where, adapter_base=self._adapter_base), {}
        partners, turned = Partners(weights, shapes), Turned(model_shapes, weights.shapes)
        for name, shape in shapes.items():
            candidates = partners.of(name)[0] or [name]
            problem = f"could be any of {', '.join(candidates)}" if len(candidates) > 1 else None
            problem = problem or unfit(weights, candidates[0], shape)
            if not problem and turned.differ(name, candidates[0], shape):
                problem = "kept as [in, out] in one of the model and this checkpoint, as [out, in] in the other"
            if problem:
                raise ValueError(f"the reference {reference!r} ({where}): {name}: {problem}")
            names[name] = candidates[0]
            as_matrix(weights.matrix(names[name]), f"the reference {reference!r} ({where}): {name}")
        parts = {item_of(part)[0] for name in names.values() for part in name.split(JOIN)}
        said = {**weights.remarks, **{name: weights.rounded[name] for name in parts if name in weights.rounded}}
        if said:
            self.remarks |= {f"{reference}: {name}": reason for name, reason in said.items()}
            told = "; ".join(f"{name}: {reason}" for name, reason in said.items())
            warnings.warn(f"RotationCallback's reference {reference!r} ({where}): {told}", stacklevel=3)
        return lambda name: weights.matrix(names[name])

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        if state.is_world_process_zero and self._due(step):
            log = control.should_log  # which our own row would take away
            self.measure(model, step)
            control.should_log = log

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "train_runtime" in (logs or {}):  # the last row of a training, before the best weights are loaded again
            self._measure_last(state, model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """For trainers that log no last row; where they have loaded other weights, the last step is not measured."""
        reloaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if not reloaded or state.best_global_step == state.global_step:
            self._measure_last(state, model)

    def _measure_last(self, state, model) -> None:
        step = state.global_step
        if state.is_world_process_zero and step and not self._due(step) and step != self._last:
            self.measure(model, step)

    def _due(self, step: int) -> bool:
        return step in self.every if isinstance(self.every, Collection) else step % self.every == 0

    @torch.no_grad()
    def measure(self, model: nn.Module, step: int) -> None:
        """Measure the model now, log the means, and add the rows of this step to the table."""
        rows = []
        for name, place, weight in self.matrices(model):
            for reference in self._references:
                before = self._before(reference, name, weight)
                rank = min(weight.shape)
                k = min(count_of(self.k, rank), rank)
                at = (step, reference, name, place.layer, place.module, k)
                rows += [(*at, metric, value) for metric, value in self._of_matrix(before, weight, k, name).items()]
        if self.prompts:
            rows.append((step, "start", "", None, "", 0, "kl", float((self._likely - self._likelihood(model)).mean())))
        self._rows, self._last = self._rows + rows, step
        self._write()
        if self._trainer:
            means = pd.DataFrame(rows, columns=COLUMNS).groupby(["reference", "metric"])["value"].mean()
            # Not the trainer's own log: TRL's would spend the metrics that it has gathered for its next row.
            Trainer.log(self._trainer, {f"rotation/{name}/{metric}": v for (name, metric), v in means.items()})

    def _write(self) -> None:
        table = pd.DataFrame(self._rows, columns=COLUMNS)
        write_whole(self.file, lambda path: table.to_parquet(path, index=False))

    def _of_matrix(self, before: Spectrum | Tensor, weight: Tensor, k: int, name: str) -> dict[str, float]:
        """The chosen measures of a matrix; NaN where training has gone wrong, which its own log shows."""
        chosen = [m for m in self.measures if m != "kl"]
        if not torch.isfinite(weight).all():
            return dict.fromkeys(chosen, float("nan"))
        found, old = {}, before.whole if isinstance(before, Spectrum) else before
        if isinstance(before, Spectrum):
            both = compare(before, weight, k, name)
            found = {
                "angle_left": lambda: both.angles_left.mean(),
                "angle_right": lambda: both.angles_right.mean(),
                "value_change": lambda: both.relative_change[:k].mean(),
                "change_ratio": lambda: both.change_ratio,
                "intruders": lambda: (both.left.best_match()[:k] < INTRUDER).mean(),
            }
        found["unchanged"] = lambda: ((weight.double() - old.double()).abs() <= TOLERANCE).double().mean()
        found["unchanged_bfloat16"] = lambda: (weight.bfloat16() == old.bfloat16()).double().mean()
        return {measure: float(found[measure]()) for measure in chosen}

    def _ask(self, model: nn.Module, tokenizer) -> None:
        """Have the start answer the prompts, and keep how likely it finds that; the random state is left alone."""
        from oodlib.inference.episodes import generate

        if not hasattr(tokenizer, "pad_token_id"):
            raise ValueError("the measure kl needs the trainer's processing_class to be a tokenizer")
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            answers = generate(model, tokenizer, self.prompts, ANSWER, temperature=1.0)
        asked = tokenizer(self.prompts)["input_ids"]
        said = tokenizer(answers, add_special_tokens=False)["input_ids"]
        self._asked = [(a, [*s, tokenizer.eos_token_id][:ANSWER]) for a, s in zip(asked, said, strict=True)]
        self._likely = self._likelihood(model)

    @torch.no_grad()
    def _likelihood(self, model: nn.Module) -> Tensor:
        """The log-probability of each of the start's answers, [prompts]."""
        was_training, found = model.training, []
        model.eval()
        for asked, said in self._asked:
            ids = torch.tensor([[*asked, *said]], device=model.device)
            log_p = model(input_ids=ids).logits[0, len(asked) - 1 : -1].float().log_softmax(-1)
            found.append(log_p.gather(1, ids[0, len(asked) :, None]).sum().cpu())
        model.train(was_training)
        return torch.stack(found)

    def _before(self, reference: str, name: str, weight: Tensor) -> Spectrum | Tensor:
        if not set(self.measures) & set(SPECTRAL):
            return self._references[reference](name).to(weight.device)
        if (reference, name) in self._spectra:
            return self._spectra[reference, name]
        before = spectrum(self._references[reference](name).to(weight.device), name)
        if sum(s.matrix.numel() for s in self._spectra.values()) + weight.numel() <= HELD:
            self._spectra[reference, name] = before
        return before

    def matrices(self, model: nn.Module, remarks: dict[str, str] | None = None) -> Iterator[tuple[str, Place, Tensor]]:
        """The chosen weight matrices of a model, adapters counted in, under the names that a checkpoint gives them.

        remarks: gets what is not chosen, by name. ValueError: see the class.
        """
        inside: tuple[str, ...] = ()  # of what is done
        for path, module in model.named_modules():
            if inside and f"{path}.".startswith(inside):
                continue
            wrapped = is_wrapped(module)
            if wrapped or hasattr(module, "original_module"):
                inside += (f"{path}.",)
            inner = module.get_base_layer() if wrapped else _active(module)
            if not (chosen := dict(self._chosen(path, inner, inner is module, remarks))):
                continue
            try:
                parameters = merged(module).items() if wrapped else inner.named_parameters()
            except ValueError as error:
                name = next(iter(chosen.values()))
                raise ValueError(f"{name} is {error}, so that RotationCallback cannot measure it") from None
            weights = {unwrapped(parameter): weight for parameter, weight in parameters}
            for parameter, name in chosen.items():
                place, weight = place_of(name), weights[unwrapped(parameter)]
                weight = weight.cpu() if weight.device.type == "mps" else weight  # which has no float64
                if weight.ndim == 2:
                    yield name, place, weight
                else:
                    for i, matrix in enumerate(weight):
                        yield f"{name}[{i}]", replace(place, index=i), matrix

    def _chosen(
        self, path: str, module: nn.Module, own: bool, remarks: dict[str, str] | None
    ) -> Iterator[tuple[str, str]]:
        """The parameters of a module that are measured (`own`: not those of the modules in it), with their names."""
        remarks = {} if remarks is None else remarks
        for parameter, weight in module.named_parameters(recurse=not own):
            name = unwrapped(f"{path}.{parameter}")
            place, dimensions = place_of(name), weight.ndim
            if place is None or place.layer is None:
                if dimensions > 1 and self.modules is None:
                    remarks[name] = "in no layer"
                continue
            if is_beside(name):
                if dimensions > 1 and self.modules is None:
                    remarks[name] = "biases or gains"
                continue
            if not place.fits(self.modules):
                continue
            whole = dimensions == 2 or not isinstance(module, nn.Linear | Conv1D)
            if not whole or not weight.numel() or hasattr(weight, "full_tensor"):
                raise ValueError(f"{name} is sharded (FSDP, ZeRO-3), which RotationCallback cannot measure")
            if dimensions > 1 and not weight.is_floating_point():
                raise ValueError(f"{name} is quantised ({weight.dtype}), which RotationCallback cannot measure")
            if dimensions == 2 or is_stack(name, tuple(weight.shape)):
                yield parameter, name
            elif dimensions > 2:
                remarks[name] = f"has {dimensions} dimensions"


def _active(module: nn.Module) -> nn.Module:
    """The module that does the work: of PEFT's modules_to_save the one that is trained."""
    if not hasattr(module, "original_module"):
        return module
    trained = getattr(module, "modules_to_save", {})
    return next((trained[name] for name in module.active_adapters if name in trained), module.original_module)


def _kept(weight: Tensor) -> Tensor:
    """A copy on the CPU, in the smallest dtype that holds it exactly."""
    if weight.dtype == torch.float64:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if torch.equal((small := weight.to(dtype)).double(), weight):
                return small.cpu()
    return weight.detach().to("cpu", copy=True)
