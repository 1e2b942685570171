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

from oodlib.analysis.claims import PAPER, listed, points
from oodlib.analysis.evidence import FALLEN, NOTHING
from oodlib.analysis.stats import Estimate, bootstrap, over_seeds
from oodlib.registry import BASELINES
from oodlib.tasks import Split, Splits

MARGIN = 0.02  # of accuracy: smaller differences are none
FEW = 0.02  # a smaller share of answers with right numbers says nothing about their arithmetic
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
    arms = rows[rows["stage"] == "rl"].pivot_table(index=DOT, columns="arm", values="value")
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


# ---- the questions ---------------------------------------------------------------------------------------


def gains(table: pd.DataFrame, splits: Splits, arms: Iterable[str] | None = None) -> pd.DataFrame:
    """What arms gain over the starts of a table: columns arm, split, gain (an Estimate)."""
    wanted = ["rl", *arms_of(table)] if arms is None else list(arms)
    by_split = [(split.name, wide(table, split.name)) for split in (splits.trained, *corners(splits))]
    rows = [(arm, split, difference(dots, arm)) for arm in wanted for split, dots in by_split]
    return pd.DataFrame([row for row in rows if row[2]], columns=["arm", "split", "gain"])


def where_nothing_anneals(table: pd.DataFrame, splits: Splits, conditions: Iterable[str]) -> str:
    """Whether RL heals at the end of an SFT whose rate was run down to 0; in Markdown, computed."""
    end = lost(table[table["condition"].isin(list(conditions))], splits, end=True)
    found = gains(end, splits).query("split == @splits.headline.name").set_index("arm")["gain"]
    if "rl" not in found:
        return "**Where nothing is left to anneal** nothing was measured that had lost OOD accuracy."
    others = [f"{BASELINES.get(arm).label} {points(gain)}" for arm, gain in found.items() if arm != "rl"]
    said = _heals(found["rl"])
    return (
        f"**Where nothing is left to anneal** (the end of {listed(end['condition'].unique())}, {found['rl'].n} "
        f"seeds), RL gains {points(found['rl'])} points of {splits.headline.label} accuracy: it **{said}** there. "
        f"The others: {'; '.join(others) or 'not measured'}."
    )


def _heals(gain: Estimate) -> str:
    if np.isnan(gain.low):
        return "was measured with one seed, which shows nothing"
    return "heals" if gain.low > 0 else "does not heal by 2 points" if gain.high < MARGIN else "is not shown to heal"


CONTRASTS = {  # what each difference of two arms shows
    "equal information: RL - rejection sampling": ("rl", "rejection_sampling"),
    "freshness alone: rejection sampling, fresh - once": ("rejection_sampling_fresh", "rejection_sampling"),
    "wrong answers and graded rewards: RL - fresh rejection sampling": ("rl", "rejection_sampling_fresh"),
    "wrong answers alone: negatives - start": ("negatives", "start"),
    "right answers too: RL - negatives": ("rl", "negatives"),
    "a value head: PPO - RL (GRPO)": ("ppo", "rl"),
    "an entropy bonus: with - without": ("entropy_bonus", "rl"),
    "a lower rate: slow - RL": ("slow_rl", "rl"),
    "more information: RL - SFT continued": ("rl", "sft_continued"),
    "no training: RL - averaging": ("rl", "averaging"),
}


def contrasts(table: pd.DataFrame, splits: Splits) -> dict[str, dict[str, Estimate]]:
    """`CONTRASTS` that were measured, from starts that have lost something: name -> split's name -> estimate."""
    counted = lost(table, splits)
    found = {split.name: wide(counted, split.name) for split in (splits.trained, *corners(splits))}
    every = {
        name: {split: d for split, dots in found.items() if (d := difference(dots, *pair))}
        for name, pair in CONTRASTS.items()
    }
    return {name: values for name, values in every.items() if values}


def contrast_table(table: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """`contrasts` to read, in points: a row a contrast, a column a split, and the seeds."""
    every = contrasts(table, splits)
    rows = {name: {splits[s].label: points(d) for s, d in by_split.items()} for name, by_split in every.items()}
    seeds = {name: max(d.n for d in by_split.values()) for name, by_split in every.items()}
    return pd.DataFrame.from_dict(rows, orient="index").assign(seeds=pd.Series(seeds, dtype=int))


def negatives_or_freshness(table: pd.DataFrame, splits: Splits) -> str:
    """Whether RL beats equal information, and through what; in Markdown, computed."""
    every = {name: values.get(splits.headline.name) for name, values in contrasts(table, splits).items()}
    keys = dict(zip(("equal", "fresh", "rest", "negatives"), CONTRASTS, strict=False))
    equal, fresh, rest, negatives = (every.get(name) for name in keys.values())
    if not equal:
        return "**Equal information:** RL and rejection sampling were not both measured."
    beats = "more than" if equal.low > 0 else "less than" if equal.high < 0 else "not shown to differ from"
    text = (
        f"**Equal information.** RL gains {points(equal)} points of {splits.headline.label} accuracy more than "
        f"rejection sampling once ({equal.n} seeds): {beats} with equal information."
    )
    if fresh and rest:
        sources = {"the freshness of the samples": fresh, "what fresh samples of right answers lack": rest}
        shown = [name for name, d in sources.items() if d.low > 0]
        text += (
            f" Fresh samples alone are worth {points(fresh)}, the rest of RL (wrong answers, graded rewards) "
            f"{points(rest)}. Shown to heal: {listed(shown) if shown else 'neither by itself'}."
        )
    if negatives:
        text += f" Wrong answers alone, pushed down, gain {points(negatives)} over the start: they {_heal(negatives)}."
    return text


def _heal(gain: Estimate) -> str:
    return _heals(gain).replace("heals", "heal").replace("does", "do").replace("is ", "are ").replace("was", "were")


def from_the_end(table: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """As `gains`, from the ends of SFT alone, where something was lost."""
    return gains(lost(table, splits, end=True), splits)


def numbers_from_the_end(table: pd.DataFrame, splits: Splits) -> str:
    """Whether any arm brings back the split that changes the numbers from SFT's end; in Markdown, computed."""
    if not (split := splits.changing("numbers")):
        return "**New numbers:** the task has no split that changes the numbers alone."
    ends = lost(table, splits, end=True)
    found = gains(ends, splits).query("split == @split.name").set_index("arm")["gain"]
    if found.empty:
        return f"**{split.label.capitalize()} from the end:** not measured."
    names = {arm: "RL" if arm == "rl" else BASELINES.get(arm).label for arm in found.index}
    back = [f"{names[arm]} ({points(gain)})" for arm, gain in found.items() if gain.low > 0]
    dots = wide(ends, split.name)
    gone = {arm: difference(dots.dropna(subset=arm), "peak") for arm in found.index}
    best = max(found.index, key=lambda arm: found[arm].value)
    return (
        f"**{split.label.capitalize()} from the end.** Of {len(found)} arms, with an interval above 0: "
        f"{'; '.join(back) or 'none'}. The most comes back by {names[best]}: {points(found[best])} of "
        f"{points(gone[best])} points that were lost. (Intervals are not corrected for the number of arms.)"
    )


def what_returns(table: pd.DataFrame, splits: Splits, arms: Iterable[str] | None = None) -> pd.DataFrame:
    """How the rule, the writing and the arithmetic change from starts that lost something; columns part, arm, gain.

    The rule: numbers named right where only the rule is new. The writing: where only the numbers are new. Both: in the
    headline. The arithmetic: right values among answers with right numbers, in the headline. Clinging: answers right
    under the rule of SFT, in the headline (fewer is better). Of a task without these measures the arithmetic alone.
    """
    counted, headline = lost(table, splits), splits.headline.name
    rule, numbers = splits.changing("rule"), splits.changing("numbers")
    right, wrong = wide(counted, headline), wide(counted, headline, "wrong_value")
    named = right + wrong
    parts = {
        "the rule is read": rule and wide(counted, rule.name, "numbers_read"),
        "new numbers are written": numbers and wide(counted, numbers.name, "numbers_read"),
        "both at once": wide(counted, headline, "numbers_read"),
        "the arithmetic with them": (right / named).where(named > FEW),
        "clinging to the old rule": wide(counted, headline, "old_rule"),
    }
    wanted = ["rl", *arms_of(counted)] if arms is None else list(arms)
    rows = [(part, arm, difference(d, arm)) for part, d in parts.items() if d is not None for arm in wanted]
    return pd.DataFrame([row for row in rows if row[2]], columns=["part", "arm", "gain"])


def rule_writing_or_arithmetic(table: pd.DataFrame, splits: Splits, arm: str = "rl") -> str:
    """What of the lost accuracy an arm brings back; in Markdown, computed."""
    found = what_returns(table, splits, [arm]).set_index("part")["gain"]
    if found.empty:
        return "**What comes back** was not measured."
    told = "; ".join(f"{part} {points(gain)}" for part, gain in found.items())
    back = [part for part, gain in found.items() if gain.low > 0 and not part.startswith("clinging")]
    name = "RL" if arm == "rl" else BASELINES.get(arm).label
    return f"**What comes back by {name}** (points): {told}. Shown to rise: {listed(back) if back else 'none of them'}."


def learnt(table: pd.DataFrame) -> pd.DataFrame:
    """RL's mean reward in its first and its last tenth, and what it rose by; a row a condition and start.

    Where it does not rise RL was not put to the test.
    """
    ends = table[(table["arm"] == "rl") & table["metric"].isin(["reward_first", "reward_last"])]
    rewards = ends.pivot_table("value", DOT, "metric", sort=False)
    rows = {}
    for (condition, start), by_seed in rewards.groupby(level=DOT[:2], sort=False):
        first, last = by_seed["reward_first"], by_seed["reward_last"]
        rise = over_seeds(last - first).text("+.2f")
        rows[f"{condition}, from {start}"] = (round(first.mean(), 2), round(last.mean(), 2), rise)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["first tenth", "last tenth", "rise"])


def answer(found: Iterable[Comparison], splits: Splits) -> str:
    """Does RL heal, and more than annealing does? In Markdown, computed."""
    mine = [c for c in found if c.split.name == splits.headline.name and counts(c.baseline)]
    if not mine:
        return "**No answer yet:** no start that had lost OOD accuracy has RL and a baseline."
    rl = max((c.rl for c in mine), key=lambda e: e.n)
    by_verdict = {
        verdict: [f"{BASELINES.get(c.baseline).label} ({points(c.difference)})" for c in mine if c.verdict == verdict]
        for verdict in VERDICTS
    }
    said = {
        "RL heals more": "RL ends above",
        "the baseline heals more": "RL ends below",
        "level": "RL is level with",
        "undecided": "undecided against",
    }
    against = "; ".join(f"{said[verdict]} {listed(names)}" for verdict, names in by_verdict.items() if names)
    beaten = len(by_verdict["RL heals more"])
    more = "yes, more than every baseline" if beaten == len(mine) else f"more than {beaten} of {len(mine)} baselines"
    count = len(mine[0].dots.loc[mine[0].dots["lost"], DOT[:2]].drop_duplicates())
    first = f"RL **{_heals(rl)}**: {points(rl)} points of {splits.headline.label} accuracy over its start"
    return (
        f"{first} ({count} starts, {rl.n} seeds). Does it heal more than annealing does? **{more.capitalize()}.** "
        f"In points, RL less the baseline: {against}."
    )


def paper_gains() -> dict[str, float]:
    """The paper's own comparison, OOD(RL) - OOD(the checkpoint from which it starts), in points.

    LLaMA has a curve by start; for Qwen the paper gives no start, only its "moderate" checkpoint.
    """
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    paper = np.subtract(curve["rl_from_step"], curve["sft"])
    best = int(np.argmax(curve["rl_from_step"]))
    qwen = PAPER["stages"]["qwen-2.5-7b"]["ood"]
    return {
        f"LLaMA 3.2 11B, from step {curve['step'][best]}, the best of {len(paper)} starts": float(paper[best]),
        f"LLaMA 3.2 11B, mean of the {len(paper)} starts": float(paper.mean()),
        'Qwen 2.5 7B, less its "moderate" checkpoint': qwen["rl"] - qwen["sft_moderate"],
    }
