"""The models of a run's story, and an operating table on which one edit of them is tried after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from oodlib.analysis.evidence import NOTHING
from oodlib.config import Config
from oodlib.inference.evaluation import evaluate, right_answer_loss
from oodlib.io import peak_step
from oodlib.models.loading import load_model, load_weights, quiet
from oodlib.models.names import matrices
from oodlib.run import Run
from oodlib.spectral.surgery import Edit, restore
from oodlib.spectral.svd import spectrum
from oodlib.stages import at_hand, ensure
from oodlib.tasks import SPLITS, get_task
from oodlib.training.arms import run_arm
from oodlib.training.sft import train

SAMPLE = 120  # hands of each split on which an edited model is measured at once


class Models:
    """The models of a seed's story, and how to make those that are not there; the base alone before SFT."""

    def __init__(self, run: Run, seed: int | None = None):
        self.run, self.seed = run, run.config.seed if seed is None else seed
        self.keys = {"base": ("sft", "sft", 0, 0)}
        quiet()
        for stage in ("sft", "rl"):
            if at_hand(run, stage):
                ensure(run, stage)
        if "sft" not in run.sources:
            return
        self.peak, self.end = peak_step(run.table("measurements"), self.seed), run.config.sft.steps
        later = [step for step in sorted(run.config.rl.starts) if step > self.peak]
        self.start = later[len(later) // 2] if later else max(run.config.rl.starts)  # amid the fall, if one is
        self.keys |= {
            f"OOD peak (step {self.peak})": ("sft", "sft", 0, self.peak),
            f"end of SFT (step {self.end})": ("sft", "sft", 0, self.end),
        }
        if "rl" in run.sources:
            if self.start not in (self.peak, self.end):
                self.keys[f"RL's start (step {self.start})"] = ("sft", "sft", 0, self.start)
            self.keys[f"RL from step {self.start}"] = ("rl", "rl", self.start, run.config.rl.steps)

    def folder(self, name: str) -> Path:
        stage, arm, from_step, step = self.keys[name]
        if stage == "rl":
            return self.run.arm_weights(self.seed, arm, from_step)
        return self.run.sft_weights(self.seed, step)

    def missing(self, *names: str) -> list[str]:
        return [name for name in names or self.keys if not (self.folder(name) / "config.json").exists()]

    def there(self) -> list[str]:
        missing = self.missing()
        return [name for name in self.keys if name not in missing]

    def make(self, names: list[str], told: Callable[[float], None] = lambda _: None) -> None:
        """Train what `names` need, resuming what was begun; `told` hears the share that is done."""
        steps, stop = self.run.config.sft.checkpoints[1:], threading.Event()

        def watch() -> None:
            while not stop.wait(1):
                told(np.mean([self.run.sft_weights(self.seed, step).exists() for step in steps]))

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            train(self.run, self.seed)
            if any(self.keys[name][0] == "rl" for name in names):
                run_arm(self.run, self.seed, "rl", self.start)
        finally:
            stop.set()
            watching.join()


class Bench:
    """One pair of checkpoints under a preset's task; each edit begins at the recipient as it was."""

    def __init__(self, recipient: Path, donor: Path, config: Config, embeddings: bool = False):
        self.model, self.tokenizer = load_model(recipient)
        self.own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.other, self.config = load_weights(donor), config
        self.task = get_task(config.task.name, config.task.options)
        places = matrices(self.own, embeddings)
        self.layers = sorted({place.layer for place in places.values() if place.layer is not None})
        self.spectra = {
            name: tuple(spectrum(W.to(self.own[name].device), name) for W in (self.own[name], self.other[name]))
            for name in places
        }

    def measure(
        self, part: str, top: float, tail: float, layers: Sequence[int | None], all_hands: bool = False
    ) -> tuple[dict[str, tuple[float, float, float]], str]:
        """Accuracy of the edited model by split, with its interval; and on how many hands. Layer None: embeddings."""
        edit = Edit(part, top, tail, [layer for layer in layers if layer is not None], embeddings=None in layers)
        self.model.load_state_dict(edit.state(self.own, self.other, self.spectra))
        found, count, p = {}, 0, self.config
        for split in SPLITS:
            size = len(self.task.split(split))
            step = p.eval.every if all_hands else max(p.eval.every, size // SAMPLE)
            options = (
                p.task.prompt_style,
                p.task.max_new_tokens,
                p.machine.eval_batch_size,
                False,
                step,
                p.eval.attempts,
            )
            right = evaluate(self.model, self.tokenizer, self.task, split, *options)["outcome"] == "correct"
            interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            found[split], count = (float(right.mean()), interval.low, interval.high), count + len(right)
        return found, f"all {count} hands" if all_hands else f"{count} of the hands"


class Operation(Bench):
    """A patient: the weights that lost OOD accuracy, those that had it, and what restored directions bring back.

    donor and recipient are folders of weights; None: the OOD peak and the end of the run's SFT, which is trained here
    where its checkpoints are not (tiny: three to four minutes). spectra: for each matrix, embeddings too, the
    Spectrum of the recipient and that of the donor. by: "accuracy", or "loss" (of right answers, nats a token) where
    the donor has less than 5 points more; both on OOD hands.
    """

    def __init__(self, run: Run, donor: str | None = None, recipient: str | None = None):
        if not (donor and recipient):
            ensure(run, "sft")
            models = Models(run)
            _, peak, end, *_ = models.keys
            if models.missing(peak, end):
                print("no checkpoints here: SFT is trained now (preset tiny: three to four minutes)")
                models.make([peak, end])
            recipient, donor = recipient or models.folder(end), donor or models.folder(peak)
        super().__init__(Path(recipient), Path(donor), run.config, embeddings=True)
        self.by = "accuracy"
        self.ends = self._score(self.own), self._score(self.other)
        if self.ends[1] - self.ends[0] < NOTHING:
            self.by = "loss"
            self.ends = self._score(self.own), self._score(self.other)

    @property
    def directions(self) -> int:
        """How many singular directions all matrices have."""
        return sum(len(own.values) for own, _ in self.spectra.values())

    def recovered(self, chosen: Sequence[tuple[str, int]]) -> float:
        """The share of what was lost that these directions, (matrix, index from 0), bring back."""
        state, indices = dict(self.own), {}
        for name, i in chosen:
            indices.setdefault(name, set()).add(int(i))
        for name, directions in indices.items():
            state[name] = restore(*self.spectra[name], indices=sorted(directions)).to(state[name])
        lost, had = self.ends
        return (self._score(state) - lost) / (had - lost)

    @cached_property
    def plain(self) -> int:
        """How many directions it takes if the leading share of EVERY matrix is restored: the bar to beat."""
        for share in np.arange(0.1, 1, 0.1):
            chosen = [(n, i) for n, (own, _) in self.spectra.items() for i in range(round(share * len(own.values)))]
            if self.recovered(chosen) >= 0.5:
                return len(chosen)
        return self.directions

    def _score(self, state: dict[str, torch.Tensor]) -> float:
        config, task = self.config, self.task
        self.model.load_state_dict(state, strict=False)
        if self.by == "accuracy":
            how = (
                config.task.prompt_style,
                config.task.max_new_tokens,
                config.machine.eval_batch_size,
                False,
                config.eval.every,
            )
            judged = evaluate(self.model, self.tokenizer, task, "ood", *how)
            return float((judged["outcome"] == "correct").mean())
        problems, how = (
            task.split("ood")[:: config.eval.every],
            (config.task.prompt_style, config.machine.eval_batch_size),
        )
        return -float(right_answer_loss(self.model, self.tokenizer, task, problems, *how).mean())
