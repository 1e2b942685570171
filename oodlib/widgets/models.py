"""The models of a run's story, training those that are missing; and a bench on which edits of one are tried."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from oodlib.config import Config
from oodlib.inference.evaluation import evaluate
from oodlib.models.loading import load_model, load_weights, quiet
from oodlib.models.names import matrices
from oodlib.run import Run
from oodlib.spectral import Edit, spectrum
from oodlib.stages import at_hand, ensure
from oodlib.tasks import get_task
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
        self.peak, self.end = run.peak_step(self.seed), run.config.sft.steps
        later = [step for step in sorted(run.config.rl.starts) if step > self.peak]
        self.start = later[len(later) // 2] if later else max(run.config.rl.starts)  # amid the fall, if one is
        self.keys |= {
            f"{run.splits.headline.label} peak (step {self.peak})": ("sft", "sft", 0, self.peak),
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

    def make(self, names: list[str], report: Callable[[float], None] = lambda share: None) -> None:
        """Train what `names` need, resuming what was begun; `report` gets the share of SFT that is done."""
        steps, stop = self.run.config.sft.checkpoints[1:], threading.Event()

        def watch() -> None:
            while not stop.wait(1):
                report(sum(self.run.sft_weights(self.seed, step).exists() for step in steps) / len(steps))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            train(self.run, self.seed)
            if any(self.keys[name][0] == "rl" for name in names):
                run_arm(self.run, self.seed, "rl", self.start)
        finally:
            stop.set()
            watcher.join()


class Bench:
    """One pair of checkpoints under a configuration's task; each edit begins at the recipient as it was.

    recipient, donor: weights by name; matrices: name -> its place; spectra: name -> those of recipient and donor.
    """

    def __init__(self, recipient: Path, donor: Path, config: Config, embeddings: bool = False):
        self.model, self.tokenizer = load_model(recipient)
        self.recipient = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.donor, self.config = load_weights(donor), config
        self.task = get_task(config.task.name, config.task.options)
        self.matrices = matrices(self.recipient, embeddings)
        self.layers = sorted({place.layer for place in self.matrices.values() if place.layer is not None})
        pairs = {name: (self.recipient[name], self.donor[name].to(self.model.device)) for name in self.matrices}
        self.spectra = {name: tuple(spectrum(matrix, name) for matrix in pair) for name, pair in pairs.items()}

    def evaluate(self, split: str, every: int, loss: bool = False) -> pd.DataFrame:
        """`inference.evaluate` of the model as it now is, on each `every`-th problem of a split."""
        c = self.config
        options = (c.task.prompt_style, c.task.max_new_tokens, c.machine.eval_batch_size, loss, every, c.eval.attempts)
        return evaluate(self.model, self.tokenizer, self.task, split, *options)

    def measure(
        self, part: str, top: float, tail: float, layers: Sequence[int | None], all_hands: bool = False
    ) -> tuple[dict[str, tuple[float, float, float]], str]:
        """Accuracy of the edited model by split, with its interval; and on how many hands. Layer None: embeddings."""
        edit = Edit(part, top, tail, [layer for layer in layers if layer is not None], embeddings=None in layers)
        self.model.load_state_dict(edit.state(self.recipient, self.donor, self.spectra))
        accuracy, count = {}, 0
        for split in self.task.splits.names:
            few = len(self.task.split(split)) // SAMPLE
            every = self.config.eval.every if all_hands else max(self.config.eval.every, few)
            right = self.evaluate(split, every)["outcome"] == "correct"
            interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            accuracy[split], count = (float(right.mean()), interval.low, interval.high), count + len(right)
        return accuracy, f"all {count} hands" if all_hands else f"{count} of the hands"
