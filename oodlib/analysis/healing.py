"""Does RL heal more than annealing does? The sweep's analysis.

A dot is a condition, a start and a seed. An arm's gain is its accuracy after the last update less that of its start.
Whatever is estimated is a mean over the starts at which a quarter of the fall or more has happened (before there is
nothing to heal), first within a seed; intervals are Student's t over seeds. A line through dots is their major axis,
which treats both gains alike: both are measured with the same noise, and least squares would make the line too flat.
Its interval is a bootstrap over seeds: dots of one seed share their starts, and this asks nothing of how they hang
together, as a mixed model would.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from oodlib.analysis.claims import points
from oodlib.analysis.evidence import FALLEN, NOTHING
from oodlib.analysis.stats import Estimate, bootstrap, over_seeds
from oodlib.registry import BASELINES
from oodlib.tasks import Split, Splits

MARGIN = 0.02  # of accuracy: smaller differences are none
DOT = ["condition", "from_step", "seed"]
NOT_ARMS = ("start", "peak")
VERDICTS = {
    "RL heals more": "RL less the baseline lies above 0 with the whole interval",
    "the baseline heals more": "it lies below 0 with the whole interval",
    "level": f"the whole interval lies within {100 * MARGIN:g} points of 0",
    "undecided": "none of these",
}


# ---- gains -----------------------------------------------------------------------------------------------


def wide(table: pd.DataFrame, split: str, metric: str = "accuracy") -> pd.DataFrame:
    """One row for each condition, start and seed; a column an arm, `start`, the SFT checkpoint itself, and `peak`."""
    rows = table[(table["split"] == split) & (table["metric"] == metric)]
    arms = rows[rows["stage"] == "rl"]
    arms = arms[arms["step"] == arms.groupby([*DOT, "arm"])["step"].transform("max")]
    arms = arms.pivot_table(index=DOT, columns="arm", values="value")
    sft = rows[rows["stage"] == "sft"].set_index(["condition", "step", "seed"])["value"]
    arms["start"] = sft.reindex(arms.index)
    arms["peak"] = sft.groupby(["condition", "seed"]).max().reindex(arms.index.droplevel("from_step")).to_numpy()
    order = pd.MultiIndex.from_frame(table[DOT[:1]].drop_duplicates()).get_level_values(0)  # of the plan
    return arms.reindex(order, level="condition")


def starts(table: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """A row a condition and start: `fall`, the share of the headline's fall that has happened there, mean over seeds
    (NaN where nothing falls); `lost`, whether that is a quarter or more; `end`, whether SFT ends there."""
    rows = table[(table["stage"] == "sft") & (table["split"] == splits.headline.name) & (table["metric"] == "accuracy")]
    curves = rows.pivot_table(index=["condition", "seed"], columns="step", values="value")
    last = curves.apply(pd.Series.last_valid_index, axis=1)
    end = pd.Series([curve[last[key]] for key, curve in curves.iterrows()], curves.index)
    whole = (curves.max(axis=1) - end).where(lambda fall: fall >= NOTHING)
    shares = curves.rsub(curves.max(axis=1), axis=0).div(whole, axis=0).stack().rename("fall").reset_index()
    shares["end"] = shares["step"] == pd.MultiIndex.from_frame(shares[["condition", "seed"]]).map(last)
    means = shares.groupby(["condition", "step"]).agg(fall=("fall", "mean"), end=("end", "any"))
    used = table[table["stage"] == "rl"][DOT[:2]].drop_duplicates()
    return means.assign(lost=means["fall"] >= FALLEN).reindex(pd.MultiIndex.from_frame(used)).sort_index()


def lost(table: pd.DataFrame, splits: Splits, end: bool | None = None) -> pd.DataFrame:
    """The rows of SFT, and of the arms from starts that have lost something; `end`: only from SFT's end, or not."""
    about = starts(table, splits)
    kept = about[about["lost"] & ((about["end"] == end) if end is not None else True)].index
    return table[(table["stage"] == "sft") | pd.MultiIndex.from_frame(table[DOT[:2]]).isin(kept)]


def difference(dots: pd.DataFrame, one: str, other: str = "start") -> Estimate | None:
    """One arm less another, or less the start: mean of a seed's dots, t over seeds; None where no seed has both.

    `dots`: as `wide` returns them. Only seeds with all dots count, so that each seed's mean is of the same starts.
    """
    if one not in dots or other not in dots:
        return None
    by_seed = (dots[one] - dots[other]).dropna().groupby("seed").agg(["mean", "size"])
    whole = by_seed.loc[by_seed["size"] == by_seed["size"].max(), "mean"]
    return over_seeds(whole) if len(whole) else None


def corners(splits: Splits) -> tuple[Split, ...]:
    """The splits that are compared: the headline, and those that change one thing."""
    return splits.headline, *(split for split in splits.others if len(split.changes) == 1)


def arms_of(table: pd.DataFrame) -> list[str]:
    """The arms of a table beside RL: those that RL has to beat first, continued SFT leading; then variants of RL."""
    order = ("more", "equal", "none", "variant")
    arms = [arm for arm in table.loc[table["stage"] == "rl", "arm"].unique() if arm != "rl"]
    return sorted(arms, key=lambda arm: (order.index(BASELINES.get(arm).information), len(arm), arm))


def counts(arm: str) -> bool:
    """Whether an arm is a baseline that RL has to beat."""
    return BASELINES.get(arm).counts


def gains(table: pd.DataFrame, splits: Splits, arms: Iterable[str] | None = None) -> pd.DataFrame:
    """What arms gain over the starts of a table: columns arm, split, gain (an Estimate)."""
    wanted = ["rl", *arms_of(table)] if arms is None else list(arms)
    by_split = [(split.name, wide(table, split.name)) for split in (splits.trained, *corners(splits))]
    rows = [(arm, split, difference(dots, arm)) for arm in wanted for split, dots in by_split]
    return pd.DataFrame([row for row in rows if row[2]], columns=["arm", "split", "gain"])


# ---- RL against a baseline -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """RL against a baseline in a corner; gains and differences are shares.

    Attributes:
        dots: a row a condition, start and seed: condition, from_step, seed, rl and baseline (their gains), fall, lost.
        rl, gained: the mean gains of both.
        difference: RL's less the baseline's.
        slope, intercept: of the major axis; where both gain alike they are 1 and 0.
    """

    baseline: str
    split: Split
    dots: pd.DataFrame
    rl: Estimate
    gained: Estimate
    difference: Estimate
    slope: Estimate
    intercept: Estimate

    @property
    def verdict(self) -> str:
        d = self.difference
        if np.isnan(d.low):
            return "undecided"
        within = d.low > -MARGIN and d.high < MARGIN
        return list(VERDICTS)[0 if d.low > 0 else 1 if d.high < 0 else 2 if within else 3]


def compare(table: pd.DataFrame, splits: Splits, baseline: str, split: Split) -> Comparison | None:
    """RL against a baseline in one corner; None where no start that has lost anything has both."""
    accuracies = wide(table, split.name)
    if "rl" not in accuracies or baseline not in accuracies:
        return None
    gains = accuracies[["rl", baseline]].sub(accuracies["start"], axis=0).dropna().assign(start=0.0)
    about = starts(table, splits)
    dots = gains.rename(columns={baseline: "baseline"}).drop(columns="start").reset_index().join(about, on=DOT[:2])
    dots = dots.assign(lost=dots["lost"].fillna(False).astype(bool))
    counted = gains[dots["lost"].to_numpy()]
    gained = [difference(counted, *pair) for pair in (("rl", "start"), (baseline, "start"), ("rl", baseline))]
    if None in gained:
        return None
    sums = np.array([_sums(rows.to_numpy()) for _, rows in counted[[baseline, "rl"]].groupby("seed")])
    lines = [_over_seeds_of_dots(sums, which) for which in range(2)]
    return Comparison(baseline, split, dots, *gained, *lines)


def comparisons(table: pd.DataFrame, splits: Splits) -> list[Comparison]:
    """RL against every other arm of the table in every corner that was measured."""
    every = [compare(table, splits, arm, split) for arm in arms_of(table) for split in corners(splits)]
    return [c for c in every if c]


def _over_seeds_of_dots(sums: np.ndarray, which: int) -> Estimate:
    """Slope (0) or intercept (1) of the major axis, with its bootstrap over seeds; one seed has no interval."""
    if len(sums) == 1:
        return Estimate(_axis_of(sums[0])[which], np.nan, np.nan, 1, "seeds")
    return bootstrap(len(sums), lambda picks: _axis_of(sums[picks].sum(0))[which], "seeds")


def major_axis(dots: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the line with the least squared distances from it; dots: columns x, y."""
    return _axis_of(_sums(dots))


def _sums(dots: np.ndarray) -> np.ndarray:
    """Of columns x, y: how many, and the sums of x, y, x², xy, y²."""
    x, y = dots.T
    return np.array([len(dots), x.sum(), y.sum(), x @ x, x @ y, y @ y])


def _axis_of(sums: np.ndarray) -> tuple[float, float]:
    n, x, y, xx, xy, yy = sums
    xx, xy, yy = xx - x * x / n, xy - x * y / n, yy - y * y / n
    slope = float(np.tan(0.5 * np.arctan2(2 * xy, xx - yy))) if xx + yy else float("nan")
    return slope, float((y - slope * x) / n)


def brief(found: Iterable[Comparison]) -> pd.DataFrame:
    """A row a baseline and corner: gains and differences in points, slope and intercept (points), verdict."""
    rows = [
        (
            BASELINES.get(c.baseline).label,
            c.split.label,
            points(c.gained),
            points(c.rl),
            points(c.difference),
            c.slope.text(".2f"),
            points(c.intercept),
            c.verdict.replace("the baseline", BASELINES.get(c.baseline).label),
        )
        for c in found
    ]
    columns = ["RL against", "corner", "it gains", "RL gains", "RL - it", "slope", "intercept", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def by_start(table: pd.DataFrame, splits: Splits, baseline: str, split: Split | None = None) -> pd.DataFrame:
    """RL less a baseline at each start: columns condition, from_step, fall, lost, difference (an Estimate)."""
    accuracies, about, rows = wide(table, (split or splits.headline).name), starts(table, splits), []
    for key, dots in accuracies.groupby(level=DOT[:2], sort=False):
        if found := difference(dots, "rl", baseline):
            rows.append((*key, about.loc[key, "fall"], about.loc[key, "lost"], found))
    return pd.DataFrame(rows, columns=[*DOT[:2], "fall", "lost", "difference"])


def gains_by_start(table: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """What RL and each baseline gain on the headline from each start, to read, in points: a row a condition and start,
    with the points that had been lost there since the peak."""
    arms, rows = {"rl": "RL"} | {arm: BASELINES.get(arm).label for arm in arms_of(table) if counts(arm)}, {}
    for (condition, step), dots in wide(table, splits.headline.name).groupby(level=DOT[:2], sort=False):
        gained = {label: points(gain) if (gain := difference(dots, arm)) else "" for arm, label in arms.items()}
        missing = difference(dots, "peak")
        rows[f"{condition}, {step}"] = {"lost": f"{100 * missing.value:.1f}" if missing else "", **gained}
    return pd.DataFrame.from_dict(rows, orient="index")
