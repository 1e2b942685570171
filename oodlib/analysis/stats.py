"""Intervals: over seeds where there are several (Student's t), over problems where there are one or two (bootstrap).

The problems of a split are all there are, so an accuracy has no sampling error as a description of that split. The
interval over problems says how far it would carry to other problems like these; only several seeds show the noise of
training. With two, a t interval would be some nine times as wide as their distance, and say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.tasks import Cloze, Splits

LEVEL = 0.95
BY_OLD_RULE = {"old_rule": "accuracy", "old_numbers": "numbers_read"}  # the same measures where the rule is SFT's
RESAMPLES = 2000
SEVERAL = 3  # seeds from which on intervals are over seeds


class Missing(LookupError):
    """The run did not measure what is asked for; the message says what."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; n counts seeds, or problems where there are fewer than `SEVERAL` seeds."""

    value: float
    low: float
    high: float
    n: int
    unit: str  # what n counts

    def text(self, form: str = "+.2f", factor: float = 1.0) -> str:
        """The value times `factor`, with its interval where there is one."""
        value, low, high = (f"{factor * x:{form}}" for x in (self.value, self.low, self.high))
        return value if np.isnan(self.low) else f"{value} [{low}, {high}]"

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "undefined"
        return self.text() + (" (one seed, no interval)" if np.isnan(self.low) else "")


class Scores:
    """A number for every problem in every evaluation of one seed and split.

    `scores[stage, arm, from_step, step]` is the mean over the problems, Missing where there is none. `table` has a row
    a problem and a column an evaluation; `rows` are those that a bootstrap drew.
    """

    def __init__(self, table: pd.DataFrame, rows: np.ndarray | None = None, columns: dict | None = None):
        self.table = table
        self.rows = np.arange(len(table)) if rows is None else rows
        self._columns = dict(zip(table.columns, table.to_numpy().T, strict=True)) if columns is None else columns

    def __getitem__(self, key: tuple[str, str, int, int]) -> float:
        if key not in self._columns or not len(self.rows):
            raise Missing(f"no evaluation {key}")
        return np.add.reduce(self._columns[key][self.rows]) / len(self.rows)  # as mean(), without what that looks up

    def resampled(self, picks: np.ndarray) -> Scores:
        return Scores(self.table, self.rows[picks], self._columns)

    def halves(self) -> tuple[Scores, Scores]:
        """The problems of even and of odd number, whatever was resampled: two sets without a common one."""
        odd = self.rows % 2 == 1
        return self.resampled(~odd), self.resampled(odd)


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over seeds with its t interval. NaN bounds for a single seed."""
    values = np.asarray(values, dtype=float)
    mean, n = float(values.mean()), len(values)
    low, high = (mean, mean) if n > 1 else (np.nan, np.nan)
    if n > 1 and (error := stats.sem(values)):
        low, high = stats.t.interval(LEVEL, n - 1, loc=mean, scale=error)
    return Estimate(mean, float(low), float(high), n, "seeds")


def bootstrap(n: int | Sequence[int], statistic: Callable[..., float], unit: str) -> Estimate:
    """The percentile bootstrap interval of `statistic(indices)`, indices drawn from range(n).

    Several n: as many sets of indices, drawn apart. NaN bounds where a set holds a single index.
    """
    sets, rng = [np.arange(size) for size in np.atleast_1d(n)], np.random.default_rng(0)
    value, total = float(statistic(*sets)), int(np.sum(n))
    if not np.isfinite(value) or min(map(len, sets)) < 2:
        return Estimate(value, np.nan, np.nan, total, unit)
    options = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "method": "percentile", "vectorized": False}
    interval = stats.bootstrap(sets, statistic, rng=rng, **options).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), total, unit)


def rotation_and_accuracy(measurements: pd.DataFrame, stage: str, splits: Splits) -> pd.DataFrame:
    """Rotation (radians) beside ID and OOD accuracy: columns seed, arm, from_step, step, trained, headline, rotation.

    SFT: every checkpoint that has both, and n_trained, n_headline, the problems; rotation is from the base. RL: the
    last update of every arm that trains; rotation is from the arm's start, accuracies are changes from it.
    """
    keys, both = ["seed", "arm", "from_step", "step"], ["trained", "headline"]
    names = {splits.trained.name: "trained", splits.headline.name: "headline"}
    rows = measurements[measurements["stage"] == stage]
    rotation = rows.query("metric == 'rotation' and split == 'weights'").set_index(keys)["value"].rename("rotation")

    def accuracy(of: str, column: str, index: list[str]) -> pd.DataFrame:
        table = measurements.query("stage == @of and metric == 'accuracy'")
        return table.pivot_table(column, index, "split", observed=True).rename(columns=names)[both]

    joined = accuracy(stage, "value", keys).join(rotation, how="inner").reset_index()
    if stage == "sft":
        return joined.join(accuracy(stage, "n", keys).add_prefix("n_"), on=keys)
    starts = pd.MultiIndex.from_frame(joined[["seed", "from_step"]])
    joined[both] -= accuracy("sft", "value", ["seed", "step"]).reindex(starts).to_numpy()
    return joined


def beliefs(measurements: pd.DataFrame, clozes: Sequence[Cloze]) -> pd.DataFrame:
    """What symbols count for to the model, along SFT: columns seed, step, rule, under, value, n.

    rule: the split whose rule the prompt states, or "none". value: the probability that a symbol counts for what the
    rule of the split `under` says, the mean over symbols; n: the clozes.
    """
    rules = {cloze.split: cloze.rule for cloze in clozes}
    table = measurements[(measurements["stage"] == "sft") & measurements["split"].isin(rules)]
    rows = []
    for under in clozes[0].under:
        says = {f"{c.symbol}={c.under[under]}" for c in clozes}
        same = table[table["metric"].isin(says)].groupby(["seed", "step", "split"])
        rows.append(same.agg(value=("value", "mean"), n=("n", "sum")).reset_index().assign(under=under))
    found = pd.concat(rows, ignore_index=True)
    return found.assign(rule=found["split"].map(rules)).drop(columns="split")


def nearer_to_peak(angles: pd.DataFrame) -> pd.DataFrame:
    """By how much each arm ends nearer to the OOD peak's singular vectors than its start is (negative: farther).

    angles: a row an arm and start, with the columns arm, value (mean angle) and those that name the start; the angle
    to the peak is the value of "ARM to peak", at the start of "sft to peak". Returns the same columns, and no row where
    one of the two is missing.
    """
    start = [column for column in angles if column not in ("arm", "value")]
    away = angles[angles["arm"].str.endswith(" to peak")].assign(arm=lambda d: d["arm"].str.removesuffix(" to peak"))
    before = away[away["arm"] == "sft"].set_index(start)["value"]
    after = away[away["arm"] != "sft"].set_index(start)
    return after.assign(value=before.reindex(after.index) - after["value"]).dropna().reset_index()


def rank_correlation(table: pd.DataFrame, x: str, y: str) -> Estimate:
    """Spearman's rank correlation of two columns within each seed: mean over seeds, t interval cut at -1 and 1.

    NaN where a seed has the same value everywhere in one of the columns.
    """
    seeds = [rows[[x, y]] for _, rows in table.groupby("seed")]
    ranked = [stats.spearmanr(rows).statistic if (rows.nunique() > 1).all() else np.nan for rows in seeds]
    mean = over_seeds(ranked)
    return replace(mean, low=max(mean.low, -1.0), high=min(mean.high, 1.0))


def bands(measurements: pd.DataFrame, shares: bool = True) -> pd.DataFrame:
    """Mean and 95 % band of a metric over seeds (t), or, for fewer than `SEVERAL` and `shares` of problems, over the
    problems of one (Wilson).

    Returns one row for each combination of the columns other than seed, value and n: mean, low, high.
    """
    keys = [c for c in measurements.columns if c not in ("seed", "value", "n")]
    rows = []
    for key, group in measurements.groupby(keys, sort=False, observed=True):
        mean = over_seeds(group["value"])
        low, high = mean.low, mean.high
        if shares and len(group) < SEVERAL:
            n = int(group["n"].iloc[0])
            low, high = stats.binomtest(round(mean.value * n), n).proportion_ci(LEVEL, "wilson")
        rows.append((*key, mean.value, low, high))
    return pd.DataFrame(rows, columns=[*keys, "mean", "low", "high"])
