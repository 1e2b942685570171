"""The evidence for the claims: a run's tables arranged by seed, with the OOD peak and the fall that follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from oodlib.analysis.stats import SEVERAL, Estimate, Missing, Scores, bootstrap, over_seeds
from oodlib.io import KEYS
from oodlib.results import RARE, Results
from oodlib.run import Run
from oodlib.tasks import OUTCOMES, Split, Splits

FALLEN = 0.25  # OOD accuracy is lost at a start once this share of the whole fall has happened
NOTHING = 0.05  # a fall in accuracy smaller than this leaves nothing to recover
Key = tuple[str, str, int, int]  # of an evaluation: stage, arm, from_step, step


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
    """A run's tables, arranged for the claims: scores by seed, the steps, and where OOD accuracy peaks and falls.

    OOD is the headline split of `splits`, ID the trained one. Only sweeps measure `mitigations`, accuracy along SFT as
    `analysis.mitigations.curves` returns it, `drift`, as `analysis.predictors.forgetting` does, and `same_start`, as
    `analysis.same_start.paths` does.
    """

    def __init__(
        self,
        hands: pd.DataFrame,
        rollouts: pd.DataFrame,
        rotation: pd.DataFrame,
        training: pd.DataFrame,
        splits: Splits,
        mitigations: pd.DataFrame | None = None,
        drift: pd.DataFrame | None = None,
        same_start: pd.DataFrame | None = None,
    ):
        self.hands, self.rollouts, self.rotation, self.training = hands, rollouts, rotation, training
        self.splits = splits
        self.mitigations, self.drift, self.same_start = (
            pd.DataFrame() if table is None else table for table in (mitigations, drift, same_start)
        )
        self.seeds = sorted(hands["seed"].unique())
        self.steps = sorted(int(s) for s in hands.loc[hands["stage"] == "sft", "step"].unique())
        self.end = self.steps[-1] if self.steps else 0
        rl = hands[hands["stage"] == "rl"]
        self.arms = rl["arm"].astype(str).unique().tolist()  # RL and its baselines
        self.starts = sorted(int(s) for s in rl["from_step"].unique())
        self.updates = int(rl["step"].max()) if len(rl) else 0
        self.outcome = self._outcome()
        self.used = False  # whether a claim has asked for the outcome: `judge` sets it back
        self._scores: dict[tuple[str, str], list[Scores]] = {}
        self.falls = [self._fall(scores) for scores in self.scores(splits.headline)]

    @classmethod
    def of(cls, run: Run | Results, **of_sweeps: pd.DataFrame) -> Evidence:
        table = run.table("measurements", "sft")
        training = table[(table["split"] == "train") & (table["metric"] == "loss")]
        rollouts = run.table("rollouts")
        of_rl = rollouts[rollouts["arm"] == "rl"]  # variants of RL have theirs too
        return cls(run.table("hands"), of_rl, run.table("rotation"), training, run.splits, **of_sweeps)

    @classmethod
    def of_sweep(cls, splits: Splits, **of_sweeps: pd.DataFrame) -> Evidence:
        """The evidence of a sweep alone."""
        nothing = pd.DataFrame(columns=[*KEYS, "problem", "outcome"])
        return cls(nothing, nothing, nothing, nothing, splits, **of_sweeps)

    def _outcome(self) -> str:
        """What claims are judged by: whether answers are correct, or numbers_read; as `results.judged_by`."""
        sft = self.hands[(self.hands["stage"] == "sft") & (self.hands["split"] == self.splits.headline.name)]
        right = (sft["outcome"] == "correct").groupby(sft["step"]).mean()
        read = "numbers_read" in sft and sft["numbers_read"].notna().all()
        return "numbers_read" if len(sft) and read and right.max() < RARE else "correct"

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

    def changing(self, *changes: str) -> Split:
        """The split that changes exactly this, such as "rule" or "numbers"; Missing where the task has none."""
        if not changes or not (split := self.splits.changing(*changes)):
            raise Missing(
                f"the task has no split that changes {' and '.join(f'the {c}' for c in changes) or 'what is new'} alone"
            )
        return split

    def scores(self, split: Split, column: str | None = None) -> list[Scores]:
        """Per seed: an outcome (`correct`, `malformed`, …), the `loss` of a right answer, or a measure of the task; by
        default what the run is judged by.

        Rows are in the order of the split, so that paired splits have paired rows.
        """
        self.used |= column is None
        column = column or self.outcome
        key = split.name, column
        if key not in self._scores:
            rows = self.hands[self.hands["split"] == split.name]
            if column not in OUTCOMES and (column not in rows or rows[column].isna().all()):
                raise Missing(f"no {column} on the split {split.name}")
            value = rows["outcome"] == column if column in OUTCOMES else rows[column]
            rows = rows.assign(value=value.astype(float), problem=pd.factorize(rows["problem"].astype(str))[0])
            rows, keys = rows[rows["value"].notna()], ["stage", "arm", "from_step", "step"]
            rows = rows.astype(dict.fromkeys(("stage", "arm"), str))
            self._scores[key] = [
                Scores(rows[rows["seed"] == seed].pivot(index="problem", columns=keys, values="value"))
                for seed in self.seeds
            ]
        return self._scores[key]

    def measure(self, statistic: Callable[..., float], *splits: Split, column: str | None = None) -> Estimate:
        """An estimate of `statistic(scores of a seed on each split, its fall)`; without `splits`, on OOD.

        Over seeds; or, for fewer than `SEVERAL`, the mean over those seeds that have what the statistic needs, by a
        bootstrap over problems. That is paired: each problem is resampled in all evaluations at once, of all seeds, and
        in all splits of as many problems, as the i-th problems of these may belong together. Missing where the
        statistic needs an evaluation that is not there.
        """
        by_split = [self.scores(split, column) for split in splits or [self.splits.headline]]
        by_seed = list(zip(*by_split, self.falls, strict=True))
        if len(by_seed) >= SEVERAL:
            return over_seeds([statistic(*seed) for seed in by_seed])
        sizes = list(dict.fromkeys(len(s.table) for s in by_seed[0][:-1]))
        lacking, having = [], []
        for seed in by_seed:
            try:
                statistic(*seed)
                having.append(seed)
            except Missing as error:
                lacking.append(error)
        if not having:
            raise lacking[0]

        def resampled(*picks: np.ndarray) -> float:
            drawn = ((*(s.resampled(picks[sizes.index(len(s.table))]) for s in of), fall) for *of, fall in having)
            return float(np.mean([statistic(*seed) for seed in drawn]))

        return bootstrap(sizes, resampled, "problems")

    # ---- keys of evaluations -----------------------------------------------------------------------

    def sft(self, step: int) -> Key:
        return ("sft", "sft", 0, step)

    def arm(self, name: str, start: int) -> Key:
        return ("rl", name, start, self.updates)

    def edit_names(self, start: str) -> list[str]:
        """The surgical edits of the run whose names start so."""
        edits = self.hands.loc[self.hands["stage"] == "surgery", "arm"].astype(str).unique()
        return sorted(edit for edit in edits if edit.startswith(start))

    def changed(self, *edits: str) -> Callable[[Scores, Fall], float]:
        """A statistic: the change of accuracy from the end of SFT through edits, their mean."""

        def change(s: Scores, fall: Fall) -> float:
            edited = [s["surgery", edit, fall.peak, self.end] for edit in edits]
            return float(np.mean(edited) - s[self.sft(self.end)])

        return change

    def recovered(self, *edits: str) -> Callable[[Scores, Fall], float]:
        """A statistic: the share of the OOD accuracy lost from peak to end that edits bring back on average.

        NaN where nothing is lost, as in a bootstrap's draw of few problems.
        """

        def lost(s: Scores, fall: Fall) -> float:
            return s[self.sft(fall.peak)] - s[self.sft(self.end)]

        if any(lost(*seed) < NOTHING for seed in zip(self.scores(self.splits.headline), self.falls, strict=True)):
            raise Missing("hardly any OOD accuracy is lost from peak to end, so there is nothing to recover")
        return lambda s, fall: self.changed(*edits)(s, fall) / (lost(s, fall) or np.nan)
