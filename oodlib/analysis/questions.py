"""The sweep's questions, and the answers that its table gives; in Markdown, computed.

Does RL heal where nothing anneals? Does it beat equal information, and through what? Does any arm bring back the new
numbers? What comes back: the rule, the writing or the arithmetic? Gains and comparisons: `analysis.healing`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from oodlib.analysis.claims import PAPER, listed, points
from oodlib.analysis.healing import (
    DOT,
    MARGIN,
    VERDICTS,
    Comparison,
    arms_of,
    corners,
    counts,
    difference,
    gains,
    lost,
    wide,
)
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.registry import BASELINES
from oodlib.tasks import Splits

FEW = 0.02  # a smaller share of the answers says nothing about what follows in them


def where_nothing_anneals(table: pd.DataFrame, splits: Splits, conditions: Iterable[str]) -> str:
    """Whether RL heals at the end of an SFT whose rate was run down to 0; in Markdown, computed."""
    end = lost(table[table["condition"].isin(list(conditions))], splits, end=True)
    found = gains(end, splits).query("split == @splits.headline.name").set_index("arm")["gain"]
    if "rl" not in found:
        return "**Where nothing is left to anneal** nothing was measured that had lost OOD accuracy."
    others = [f"{BASELINES.get(arm).label} {points(gain)}" for arm, gain in found.items() if arm != "rl"]
    said = _gains(found["rl"])
    return (
        f"**Where nothing is left to anneal** (the end of {listed(end['condition'].unique())}, {found['rl'].n} "
        f"seeds), RL gains {points(found['rl'])} points of {splits.headline.label} accuracy: it **{said}** there. "
        f"The others: {'; '.join(others) or 'not measured'}."
    )


def _gains(gain: Estimate) -> str:
    if np.isnan(gain.low):
        return "was measured with one seed, which shows nothing"
    return "gains" if gain.low > 0 else "does not gain 2 points" if gain.high < MARGIN else "is not shown to gain"


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
    verdict = "RL gains more" if equal.low > 0 else "RL gains less" if equal.high < 0 else "no difference is shown"
    text = (
        f"**Equal information.** RL gains {points(equal)} points of {splits.headline.label} accuracy more than "
        f"rejection sampling once ({equal.n} seeds): {verdict}."
    )
    if fresh and rest:
        sources = {"the freshness of the samples": fresh, "what fresh samples of right answers lack": rest}
        shown = [name for name, d in sources.items() if d.low > 0]
        text += (
            f" Fresh samples alone are worth {points(fresh)}, the rest of RL (wrong answers, graded rewards) "
            f"{points(rest)}. Shown to heal: {listed(shown) if shown else 'neither by itself'}."
        )
    if negatives:
        text += f" Wrong answers alone, pushed down, gain {points(negatives)} over the start: they {_gain(negatives)}."
    return text


def _gain(gain: Estimate) -> str:
    return _gains(gain).replace("gains", "gain").replace("does", "do").replace("is ", "are ").replace("was", "were")


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
    """How the steps to a right answer change from starts that lost something; columns part, arm, gain.

    The rule: numbers named right where only the rule is new. New numbers: where only they are new. Then three steps in
    the headline, whose product is its accuracy: numbers named right; formulas of these numbers, as a share of those;
    right values, as a share of those formulas. Clinging: answers right under the rule of SFT, in the headline (fewer is
    better). Of a task without these measures the last step alone.
    """
    counted, headline = lost(table, splits), splits.headline.name
    rule, numbers = splits.changing("rule"), splits.changing("numbers")
    named, right = wide(counted, headline, "numbers_read"), wide(counted, headline)
    kept = right + wide(counted, headline, "wrong_value")
    parts = {
        "the new rule is read": rule and wide(counted, rule.name, "numbers_read"),
        "new numbers are named": numbers and wide(counted, numbers.name, "numbers_read"),
        "both at once": named,
        "the formula keeps to them": (kept / named).where(named > FEW),
        "its value is right": (right / kept).where(kept > FEW),
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
    above, below = (len(by_verdict[verdict]) for verdict in ("RL heals more", "the baseline heals more"))
    more = "yes, it ends above every baseline" if above == len(mine) else f"not shown: above {above} of {len(mine)}"
    more = f"no: it ends below {below} of {len(mine)} baselines" if below else more
    count = len(mine[0].dots.loc[mine[0].dots["lost"], DOT[:2]].drop_duplicates())
    first = f"RL **{_gains(rl)}**: {points(rl)} points of {splits.headline.label} accuracy over its start"
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
