"""An operating table: a recipient and a donor with their spectra at hand, to try one edit after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor

from oodlib.episodes import as_text
from oodlib.evaluate import answer_loss, evaluate
from oodlib.evidence import NOTHING
from oodlib.models import load_model, load_weights, matrices
from oodlib.presets import Preset
from oodlib.runs import Run
from oodlib.sft import peak_step, sft_folder, train
from oodlib.spectra import spectrum
from oodlib.stages import ensure, quiet
from oodlib.surgery import restore, restore_model
from oodlib.tasks import SPLITS, get_task

SAMPLE = 120  # hands of each split on which an edited model is measured at once


class Bench:
    """One pair of checkpoints under a preset's task; each edit begins at the recipient as it was."""

    def __init__(self, recipient: Path, donor: Path, preset: Preset, embeddings: bool = False):
        self.model, self.tokenizer = load_model(recipient)
        self.own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.other, self.preset = load_weights(donor), preset
        self.task = get_task(preset.task, preset.task_options)
        self.places = matrices(list(self.own), embeddings)
        self.layers = sorted({layer for layer, _ in self.places.values() if layer is not None})
        self.spectra = {
            name: (spectrum(self.own[name], name), spectrum(self.other[name], name)) for name in self.places
        }

    def measure(
        self, part: str, top: float, tail: float, layers: Sequence[int | None], all_hands: bool = False
    ) -> tuple[dict[str, tuple[float, float, float]], str]:
        """Accuracy of the edited model by split, with its interval; and on how many hands. Layer None: embeddings."""
        chosen = [name for name, (layer, _) in self.places.items() if layer in layers]

        def edit(name: str, own: Tensor, other: Tensor) -> Tensor:
            rank = min(own.shape)
            k_top, k_tail = round(top * rank), round(tail * rank)
            k_tail = min(k_tail, rank - k_top)
            return restore(own, other, part, k_top, k_tail, spectra=self.spectra[name])

        self.model.load_state_dict(restore_model(self.own, self.other, chosen, edit))
        found, count, p = {}, 0, self.preset
        for split in SPLITS:
            size = len(self.task.split(split))
            step = p.eval_every if all_hands else max(p.eval_every, size // SAMPLE)
            options = (p.prompt_style, p.max_new_tokens, p.eval_batch_size, False, step, p.verify_turns)
            right = evaluate(self.model, self.tokenizer, self.task, split, *options)["outcome"] == "correct"
            interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            found[split], count = (float(right.mean()), interval.low, interval.high), count + len(right)
        return found, f"all {count} hands" if all_hands else f"{count} of the hands"


class Operation(Bench):
    """A patient: the weights that lost OOD accuracy, those that had it, and what restored directions bring back.

    donor and recipient are folders of weights; None: the OOD peak and the end of the run's SFT, which is trained here
    where its checkpoints are not (tiny: about two minutes). spectra: for each matrix, embeddings too, the Spectrum of
    the recipient and that of the donor. by: "accuracy", or "loss" (of right answers, nats a token) where the
    donor has less than 5 points more; both on OOD hands.
    """

    def __init__(self, run: Run, donor: str | None = None, recipient: str | None = None):
        given = recipient, donor
        ends = given if all(given) else [g or own for g, own in zip(given, _ends_of_sft(run), strict=True)]
        super().__init__(Path(ends[0]), Path(ends[1]), run.preset, embeddings=True)
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
        for name, mine in indices.items():
            own, other = self.spectra[name]
            i = torch.tensor(sorted(mine), device=own.values.device)
            new, old = ((s.left[:, i] * own.values[i]) @ s.right[:, i].T for s in (other, own))
            state[name] = (state[name].double() + (new - old).cpu()).to(state[name].dtype)
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
        preset, task = self.preset, self.task
        self.model.load_state_dict(state, strict=False)
        if self.by == "accuracy":
            how = (preset.prompt_style, preset.max_new_tokens, preset.eval_batch_size, False, preset.eval_every)
            judged = evaluate(self.model, self.tokenizer, task, "ood", *how)
            return float((judged["outcome"] == "correct").mean())
        rng, problems = np.random.default_rng(0), task.split("ood")[:: preset.eval_every]
        asked = [as_text(task.prompt(p, preset.prompt_style), self.tokenizer) for p in problems]
        answers = [as_text(task.answer(p, preset.prompt_style, rng), self.tokenizer, answer=True) for p in problems]
        return -float(answer_loss(self.model, self.tokenizer, asked, answers, preset.eval_batch_size).mean())


def _ends_of_sft(run: Run) -> list[Path]:
    """The folders of the end and of the OOD peak of the run's SFT; trains it where they are not there."""
    ensure(run, "sft")
    seed = run.preset.seed
    steps = run.preset.sft_steps, peak_step(run.table("measurements", "sft"), seed)
    folders = [sft_folder(run, seed, step) for step in steps]
    if not all(folder.exists() for folder in folders):
        print("no checkpoints here: SFT is trained now (preset tiny: about two minutes)")
        quiet()
        train(run, seed)
    return folders
