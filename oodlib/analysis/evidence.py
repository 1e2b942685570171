"""The evidence for the claims: a run's tables arranged by seed, with the place of the OOD peak and of its fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from oodlib.analysis.stats import Estimate, Scores, estimate
from oodlib.run import Results, Run

FALLEN = 0.25  # OOD accuracy is lost at a start once this share of the whole fall has happened
NOTHING = 0.05  # a fall in accuracy smaller than this leaves nothing to recover
WINDOW = 0.05  # share of the steps, the last ones, over which the training loss is averaged


class Missing(LookupError):
    """The run did not measure what a rule needs; the message says what."""


@dataclass(frozen=True)
class Place:
    """Where a seed's OOD peak is, and the RL starts before, within and at the end of its fall."""

    peak: int
    early: list[int]  # before OOD accuracy is lost
    inside: list[int]  # after at least a quarter of the fall, before the end
    late: list[int]  # the last SFT checkpoint

    @property
    def lost(self) -> list[int]:
        return self.inside + self.late


class Evidence:
    """A run's tables, arranged for the claims: scores a seed, the steps, and where the peak is."""

    def __init__(self, hands: pd.DataFrame, rollouts: pd.DataFrame, rotation: pd.DataFrame, training: pd.DataFrame):
        self.hands, self.rollouts, self.rotation, self.training = hands, rollouts, rotation, training
        self.seeds = sorted(hands["seed"].unique())
        sft = hands[hands["stage"] == "sft"]
        self.steps = sorted(int(s) for s in sft["step"].unique())
        self.end = self.steps[-1]
        rl = hands[hands["stage"] == "rl"]
        self.rl_from = sorted(int(s) for s in rl["from_step"].unique())
        self.rl_steps = int(rl["step"].max()) if len(rl) else 0
        self._cache: dict[tuple[str, str], list[Scores]] = {}
        self.places = [self._place(scores) for scores in self.scores("ood")]

    @classmethod
    def of(cls, run: Run | Results) -> Evidence:
        table = run.table("measurements")
        training = table[(table["stage"] == "sft") & (table["split"] == "train") & (table["metric"] == "loss")]
        return cls(run.table("hands"), run.table("rollouts"), run.table("rotation"), training)

    def _place(self, scores: Scores) -> Place:
        ood = {t: scores[SFT(t)] for t in self.steps}
        peak = max(self.steps, key=lambda t: (ood[t], -t))
        bar = ood[peak] - FALLEN * (ood[peak] - ood[self.end])
        inside = [t for t in self.rl_from if peak < t < self.end and ood[t] <= bar]
        late = [t for t in self.rl_from if t == self.end]
        return Place(peak, [t for t in self.rl_from if t not in inside + late], inside, late)

    @property
    def peaks(self) -> list[int]:
        return [place.peak for place in self.places]

    def scores(self, split: str, column: str = "correct") -> list[Scores]:
        """Per seed: was the answer `correct`, was it `malformed`, or the `loss` of a right answer."""
        if (split, column) not in self._cache:
            mine = self.hands[self.hands["split"] == split]
            value = mine["loss"] if column == "loss" else (mine["outcome"] == column).astype(float)
            keys = ["stage", "arm", "from_step", "step"]
            tables = mine.assign(value=value).astype(dict.fromkeys(("stage", "arm", "problem"), str))
            tables = tables[tables["value"].notna()]
            self._cache[split, column] = [
                Scores(tables[tables["seed"] == s].pivot(index="problem", columns=keys, values="value"))
                for s in self.seeds
            ]
        return self._cache[split, column]

    def measure(self, statistic: Callable[[Scores, Place], float], split="ood", column="correct") -> Estimate:
        """An estimate of `statistic(scores of a seed, its place)`; Missing where it needs what is not there."""
        scores = self.scores(split, column)
        places = {id(s.table): place for s, place in zip(scores, self.places, strict=True)}
        try:
            return estimate(scores, lambda s: statistic(s, places[id(s.table)]))
        except KeyError as error:
            raise Missing(_said(error.args[0])) from None

    def arm(self, name: str, start: int) -> tuple[str, str, int, int]:
        return ("rl", name, start, self.rl_steps)

    def edit(self, name: str, peak: int) -> tuple[str, str, int, int]:
        return ("surgery", name, peak, self.end)

    def edit_names(self, start: str) -> list[str]:
        arms = self.hands.loc[self.hands["stage"] == "surgery", "arm"].astype(str).unique()
        return sorted(a for a in arms if a.startswith(start))


def _said(key: object) -> str:
    """What is missing, by the key of its evaluation (stage, arm, start, step)."""
    stage, arm, *_ = key if isinstance(key, tuple) else (key, "")
    known = {"surgery": f"the run has no surgery {arm!r}", "rl": f"the run has no RL of the arm {arm!r}"}
    return known.get(stage, f"no evaluation {key}")


def SFT(step: int) -> tuple[str, str, int, int]:
    """The key of an SFT checkpoint's evaluation."""
    return ("sft", "sft", 0, step)


def recovered(e: Evidence, name: str) -> Callable[[Scores, Place], float]:
    """The share of the OOD accuracy lost from peak to end that a surgical edit brings back."""

    def share(s: Scores, at: Place) -> float:
        lost = s[SFT(at.peak)] - s[SFT(e.end)]
        if lost < NOTHING:
            raise Missing("hardly any OOD accuracy is lost from peak to end, so there is nothing to recover")
        return (s[e.edit(name, at.peak)] - s[SFT(e.end)]) / lost

    return share


def training_rise(e: Evidence) -> float:
    """The relative change of the mean training loss from around the peak to the end, mean over seeds."""
    if e.training.empty:
        raise Missing("no training loss")
    width = max(1, round(WINDOW * e.end))
    changes = []
    for seed, peak in zip(e.seeds, e.peaks, strict=True):
        loss = e.training[e.training["seed"] == seed].set_index("step")["value"]
        around = loss[(loss.index >= peak * 2 / 3) & (loss.index <= peak * 4 / 3)]
        changes.append(loss[loss.index > e.end - width].mean() / around.mean() - 1)
    return float(np.mean(changes))


def advantage_groups(e: Evidence, seed: int) -> dict[int, np.ndarray]:
    """Per start, the advantages as [groups, samples a group]."""
    mine = e.rollouts[e.rollouts["seed"] == seed]
    groups = {}
    for start, frame in mine.groupby("from_step"):
        size = int(frame.groupby("group").size().mode().iloc[0])
        groups[int(start)] = frame["advantage"].to_numpy()[: len(frame) // size * size].reshape(-1, size)
    return groups
