"""The evidence for the claims: a run's tables arranged by seed, with the OOD peak and the fall that follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from oodlib.analysis.stats import Estimate, Scores, bootstrap, over_seeds
from oodlib.run import Results, Run

FALLEN = 0.25  # OOD accuracy is lost at a start once this share of the whole fall has happened
NOTHING = 0.05  # a fall in accuracy smaller than this leaves nothing to recover
Key = tuple[str, str, int, int]  # of an evaluation: stage, arm, from_step, step


class Missing(LookupError):
    """The run did not measure what a rule needs; the message says what."""


@dataclass(frozen=True)
class Fall:
    """A seed's OOD peak, and the RL starts by how much of the fall after it has happened there."""

    peak: int
    early: list[int]  # before OOD accuracy is lost
    inside: list[int]  # after at least a quarter of the fall, before the end
    late: list[int]  # the last SFT checkpoint

    def starts(self, *parts: str) -> list[int]:
        """The starts in these parts; Missing where there is none."""
        steps = [step for part in parts for step in getattr(self, part)]
        if not steps:
            raise Missing(f"no {' or '.join(parts)} RL start")
        return steps


class Evidence:
    """A run's tables, arranged for the claims: scores by seed, the steps, and where OOD accuracy peaks and falls."""

    def __init__(self, hands: pd.DataFrame, rollouts: pd.DataFrame, rotation: pd.DataFrame, training: pd.DataFrame):
        self.hands, self.rollouts, self.rotation, self.training = hands, rollouts, rotation, training
        self.seeds = sorted(hands["seed"].unique())
        self.steps = sorted(int(s) for s in hands.loc[hands["stage"] == "sft", "step"].unique())
        self.end = self.steps[-1]
        rl = hands[hands["stage"] == "rl"]
        self.arms = rl["arm"].astype(str).unique().tolist()  # RL and its baselines
        self.starts = sorted(int(s) for s in rl["from_step"].unique())
        self.updates = int(rl["step"].max()) if len(rl) else 0
        self._scores: dict[tuple[str, str], list[Scores]] = {}
        self.falls = [self._fall(scores) for scores in self.scores("ood")]

    @classmethod
    def of(cls, run: Run | Results) -> Evidence:
        table = run.table("measurements", "sft")
        training = table[(table["split"] == "train") & (table["metric"] == "loss")]
        return cls(run.table("hands"), run.table("rollouts"), run.table("rotation"), training)

    def _fall(self, scores: Scores) -> Fall:
        ood = {t: scores[self.sft(t)] for t in self.steps}
        peak = max(self.steps, key=lambda t: (ood[t], -t))
        bar = ood[peak] - FALLEN * (ood[peak] - ood[self.end])
        inside = [t for t in self.starts if peak < t < self.end and ood[t] <= bar]
        late = [t for t in self.starts if t == self.end]
        return Fall(peak, [t for t in self.starts if t not in inside + late], inside, late)

    @property
    def peaks(self) -> list[int]:
        return [fall.peak for fall in self.falls]

    def scores(self, split: str, column: str = "correct") -> list[Scores]:
        """Per seed: was the answer `correct`, was it `malformed`, or the `loss` of a right answer."""
        if (split, column) not in self._scores:
            rows = self.hands[self.hands["split"] == split]
            value = rows["loss"] if column == "loss" else (rows["outcome"] == column).astype(float)
            rows = rows.assign(value=value).astype(dict.fromkeys(("stage", "arm", "problem"), str))
            rows, keys = rows[rows["value"].notna()], ["stage", "arm", "from_step", "step"]
            self._scores[split, column] = [
                Scores(rows[rows["seed"] == seed].pivot(index="problem", columns=keys, values="value"))
                for seed in self.seeds
            ]
        return self._scores[split, column]

    def measure(self, statistic: Callable[[Scores, Fall], float], split="ood", column="correct") -> Estimate:
        """An estimate of `statistic(scores of a seed, its fall)`: over seeds, or for one seed over its problems.

        The bootstrap over problems is paired: each is resampled in all evaluations at once. Missing where the
        statistic needs an evaluation that is not there.
        """
        by_seed = list(zip(self.scores(split, column), self.falls, strict=True))
        try:
            if len(by_seed) > 1:
                return over_seeds([statistic(*seed) for seed in by_seed])
            ((scores, fall),) = by_seed
            return bootstrap(len(scores.table), lambda picks: statistic(scores.resampled(picks), fall), "problems")
        except KeyError as error:
            raise Missing(f"no evaluation {error.args[0]}") from None

    # ---- keys of evaluations -----------------------------------------------------------------------

    def sft(self, step: int) -> Key:
        return ("sft", "sft", 0, step)

    def arm(self, name: str, start: int) -> Key:
        return ("rl", name, start, self.updates)

    def edit_names(self, start: str) -> list[str]:
        """The surgical edits of the run whose names start so."""
        edits = self.hands.loc[self.hands["stage"] == "surgery", "arm"].astype(str).unique()
        return sorted(edit for edit in edits if edit.startswith(start))

    def recovered(self, *edits: str) -> Callable[[Scores, Fall], float]:
        """A statistic: the share of the OOD accuracy lost from peak to end that edits bring back on average."""

        def share(s: Scores, fall: Fall) -> float:
            end = s[self.sft(self.end)]
            lost = s[self.sft(fall.peak)] - end
            if lost < NOTHING:
                raise Missing("hardly any OOD accuracy is lost from peak to end, so there is nothing to recover")
            return float(np.mean([(s["surgery", edit, fall.peak, self.end] - end) / lost for edit in edits]))

        return share
