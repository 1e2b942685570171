"""What predicts forgetting: measures of drift, and what everybody watches, against the accuracy lost in each corner.

Reads a sweep's table whose cells measured drift (`spectral.metrics.MEASURES`). A point is a checkpoint of SFT from the
headline's peak on, or an arm's end, of one condition and seed. What it lost in a corner is the best accuracy that its
SFT had there up to its step (an arm: up to its start), less its own. Along one training everything that grows with the
steps goes with what is lost, so every strength is given twice: over all points, and over ends alone, one a recipe.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.tasks import Split, Splits

RECIPE = ["condition", "seed", "arm", "from_step"]
POINT = [*RECIPE, "step"]
KL = "kl_from_base"
KLS = tuple(f"kl_{way}_base{part}" for part in ("", "_formed") for way in ("from", "to"))
START, END = "start of the arms", "end of SFT"
WHAT = {  # what figures and texts call a measure of `spectral.metrics.MEASURES`, and what everybody watches
    "kl_from_base": "KL(base || model), ID prompts",
    "kl_to_base": "KL(model || base), ID prompts",
    "kl_from_base_formed": "KL(base || model), format aside",
    "kl_to_base_formed": "KL(model || base), format aside",
    "entropy": "entropy of answers",
    "margin": "margin of answers",
    "cka": "hidden states: CKA",
    "mmd": "hidden states: MMD",
    "frechet": "hidden states: Fréchet distance",
    "weight_change": "weights: size of the change",
    "angle": "weights: angle, leading quarter",
    "value_change": "weights: singular values",
    "intruders": "weights: intruders",
    "effective_rank": "weights: effective rank of the change",
    "unchanged": "weights: unchanged, float32",
    "unchanged_bfloat16": "weights: unchanged, bfloat16",
    "principal": "weights: change on principal ones",
    "steps": "number of steps",
    "id_loss": "ID loss",
    "id_accuracy": "ID accuracy",
}
STRENGTHS = ["measure", "split", "over", "points", "rank", "fit", "held_out"]
WATCHED = {  # what everybody has anyway: metric, and what it is called here
    "loss": "id_loss",
    "accuracy": "id_accuracy",
}


def forgetting(table: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """Points: columns condition, seed, arm, from_step, step, end, each measure, steps, id_loss, id_accuracy, and
    lost_SPLIT of every split, as shares.

    end: whether it is the last of its recipe. steps: all updates from the base on, an arm's included.
    """
    from oodlib.spectral.metrics import MEASURES  # late, for torch takes seconds

    drift, rows = table[table["stage"] == "drift"], table[table["stage"].isin(("sft", "rl"))]
    wide = drift[drift["metric"].isin(MEASURES)].pivot_table(index=POINT, columns="metric", values="value")
    own = rows[(rows["split"] == splits.trained.name) & rows["metric"].isin(WATCHED)]
    watched = own.pivot_table(index=POINT, columns="metric", values="value").rename(columns=WATCHED)
    accuracy = rows[(rows["metric"] == "accuracy") & rows["split"].isin(splits.names)]
    accuracy = accuracy.pivot_table(index=POINT, columns="split", values="value")
    sft = accuracy.xs(("sft", 0), level=("arm", "from_step"))
    best = sft.groupby(level=("condition", "seed")).cummax()
    highest = sft[splits.headline.name].groupby(level=("condition", "seed")).idxmax()
    peak = highest.map(lambda place: place[2])
    here = drift[drift["metric"] == "id_loss"].set_index(POINT)["value"]  # of arms too
    points = wide.join(watched)
    points["id_loss"] = here.reindex(points.index).fillna(points["id_loss"])
    points = points.reset_index()
    of_sft = points["arm"] == "sft"
    reached = points["step"].where(of_sft, points["from_step"])
    so_far = pd.MultiIndex.from_arrays([points["condition"], points["seed"], reached])
    now = accuracy.reindex(pd.MultiIndex.from_frame(points[POINT]))
    for split in splits.names:
        points[f"lost_{split}"] = best[split].reindex(so_far).to_numpy() - now[split].to_numpy()
    points["steps"] = points["step"].where(of_sft, points["step"] + points["from_step"])
    points["end"] = points["step"] == points.groupby(RECIPE)["step"].transform("max")
    first = peak.reindex(pd.MultiIndex.from_frame(points[["condition", "seed"]])).to_numpy()
    return points[reached.to_numpy() >= first].reset_index(drop=True)


def strengths(points: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """How well each measure tells what is lost: columns measure, split, over (all, ends), points, rank, fit, held_out.

    points: how many a seed, on average. rank: Spearman's rank correlation. fit: R^2 of a quadratic fit
    (arXiv:2509.04259). held_out: the same of points that the fit has not seen, one left out at a time. All are taken
    within a seed, over its points, and are Estimates over seeds; a measure that is the same everywhere has none.
    """
    from oodlib.spectral.metrics import MEASURES

    found: list[tuple] = []
    if points.empty:
        return pd.DataFrame(columns=STRENGTHS)
    measures = [name for name in (*MEASURES, "steps", *WATCHED.values()) if name in points]
    for over, chosen in (("all", points), ("ends", points[points["end"]])):
        for split in splits.names:
            for measure in measures:
                pairs = by_seed(chosen, split, measure)
                ranks = [value for x, y in pairs if np.isfinite(value := rank_correlation(x, y))]
                fits = [value for x, y in pairs if np.isfinite(value := quadratic_fit(x, y))]
                outside = [value for x, y in pairs if np.isfinite(value := held_out_fit(x, y))]
                if ranks and fits and outside:
                    n = np.mean([len(x) for x, _ in pairs])
                    found.append((measure, split, over, n, *map(over_seeds, (ranks, fits, outside))))
    return pd.DataFrame(found, columns=STRENGTHS)


def strength_table(found: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """`strengths` over ends, to read: a row a measure, the best of the headline first. R^2 on each split; of the
    headline also R^2 of ends left out, and the rank correlation."""
    ends = found[found["over"] == "ends"].set_index(["split", "measure"])
    mine = ends.loc[splits.headline.name]
    best = sorted(mine.index, key=lambda measure: -mine.at[measure, "fit"].value)
    table = pd.DataFrame(index=[WHAT.get(measure, measure) for measure in best])
    for split in (splits.headline, *(s for s in splits if s != splits.headline)):
        fits = ends.xs(split.name)["fit"].reindex(best)
        table[f"R², {split.label}"] = ["" if fit is None or fit != fit else fit.text(".2f") for fit in fits]
    unseen = mine["held_out"].reindex(best)
    table[f"R², {splits.headline.label}, left out"] = ["below 0" if r.value < 0 else r.text(".2f") for r in unseen]
    table["rank correlation"] = [mine.at[measure, "rank"].text(".2f") for measure in best]
    return table


def by_seed(points: pd.DataFrame, split: str, measure: str) -> list[np.ndarray]:
    """A measure and what is lost on a split, [2, points] a seed, of the points that have both."""
    return [seed[[measure, f"lost_{split}"]].dropna().to_numpy().T for _, seed in points.groupby("seed")]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; NaN where one of the two does not vary, or of fewer than three points."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def quadratic_fit(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of the least-squares parabola of y over x; NaN where it has as many coefficients as x has values."""
    if len(np.unique(x)) < 4 or np.ptp(y) == 0:
        return float("nan")
    z = (x - x.mean()) / x.std()
    rest = y - np.polyval(np.polyfit(z, y, 2), z)
    return float(1 - (rest**2).sum() / ((y - y.mean()) ** 2).sum())


def held_out_fit(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of `quadratic_fit` with each point predicted by the fit and the mean of the others (leave-one-out).

    Below 0 where the mean predicts better. NaN where a fit without one of the points has no values enough.
    """
    if min((len(np.unique(np.delete(x, i))) for i in range(len(x))), default=0) < 3 or np.ptp(y) == 0:
        return float("nan")
    z, n = (x - x.mean()) / x.std(), len(x)
    design = np.vander(z, 3)
    hat = design @ np.linalg.pinv(design)
    rest, from_mean = (y - hat @ y) / (1 - hat.diagonal()), (y - y.mean()) * n / (n - 1)
    return float(1 - (rest**2).sum() / (from_mean**2).sum())


def better(points: pd.DataFrame, split: str, one: str, other: str) -> Estimate | None:
    """The quadratic fit of one measure less that of another, over the ends that have both, paired within a seed; None
    where no seed has enough of them."""
    gaps = []
    for _, seed in points[points["end"]].groupby("seed"):
        both = seed[[one, other, f"lost_{split}"]].dropna().to_numpy().T
        gap = quadratic_fit(both[0], both[2]) - quadratic_fit(both[1], both[2])
        gaps += [gap] if np.isfinite(gap) else []
    return over_seeds(gaps) if gaps else None


def hidden_states(table: pd.DataFrame, start: int) -> pd.DataFrame:
    """How far the hidden states of one condition moved from the base's: columns seed, place, metric, value.

    Places: SFT's step `start`, its end, and the end of each arm from that start, by its name. Metrics: pc1, pc2, and
    cka_LAYER.
    """
    drift = table[(table["stage"] == "drift") & table["metric"].str.match(r"pc\d|cka_")]
    ended = drift["step"] == drift.groupby(["arm", "from_step"])["step"].transform("max")
    drift = drift[(drift["arm"] == "sft") | ended]
    of_sft, arms = drift["arm"] == "sft", drift[(drift["arm"] != "sft") & (drift["from_step"] == start)]
    at = {START: start, END: drift.loc[of_sft, "step"].max()}
    places = [drift[of_sft & (drift["step"] == step)].assign(place=name) for name, step in at.items()]
    return pd.concat([*places, arms.assign(place=arms["arm"])])[["seed", "place", "metric", "value"]]


def advice(found: pd.DataFrame, split: Split) -> str:
    """In Markdown, computed: what tells best how much is lost on a split, with and without the base at hand.

    found: as `strengths` returns it.
    """
    ends = found[(found["split"] == split.name) & (found["over"] == "ends")].set_index("measure")["fit"]
    if ends.empty:
        return "**To be warned.** Drift was not measured."
    free = ends[[name for name in ("steps", *WATCHED.values()) if name in ends]]
    best, watched = (max(of.index, key=lambda name: of[name].value) for of in (ends, free))
    return (
        f"**To be warned.** Over the ends of recipes and arms, this measure tells best how much {split.label} accuracy "
        f"is lost: **{WHAT.get(best, best)}**, R² {ends[best].text('.2f')}. Of the measures that need no base model, "
        f"the best is {WHAT[watched]}, R² {free[watched].text('.2f')}."
    )
