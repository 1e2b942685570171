"""An operating table: a recipient and a donor with their spectra at hand, to try one edit after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest
from torch import Tensor

from oodlib.evaluate import evaluate
from oodlib.models import load_model, load_weights, matrices
from oodlib.presets import Preset
from oodlib.spectra import spectrum
from oodlib.surgery import restore, restore_model
from oodlib.tasks import SPLITS, get_task

SAMPLE = 120  # hands of each split on which an edited model is measured at once


class Bench:
    """One pair of checkpoints under a preset's task; each edit begins at the recipient as it was."""

    def __init__(self, recipient: Path, donor: Path, preset: Preset):
        self.model, self.tokenizer = load_model(recipient)
        self.own = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.other, self.preset = load_weights(donor), preset
        self.task = get_task(preset.task, preset.task_options)
        self.places = matrices(list(self.own))
        self.layers = sorted({layer for layer, _ in self.places.values()})
        self.spectra = {
            name: (spectrum(self.own[name], name), spectrum(self.other[name], name)) for name in self.places
        }

    def measure(
        self, part: str, top: float, tail: float, layers: Sequence[int], all_hands: bool = False
    ) -> tuple[dict[str, tuple[float, float, float]], str]:
        """Accuracy of the edited model by split, with its interval; and on how many hands."""
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
