"""When does RL heal? The sweep's analysis.

The effect of a condition at a start is OOD(RL) - OOD(best baseline), in accuracy on every OOD problem. The best
baseline is the one with the highest mean over the seeds, of those that end at most 2 points of ID accuracy below RL.
Intervals are Student's t over seeds, paired within a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.analysis.claims import PAPER, points
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.registry import BASELINES

MARGIN = 0.02  # of accuracy: smaller differences are none
TRAINED = tuple(name for name in BASELINES.names() if BASELINES.get(name).trains)
RULES = {  # the verdicts, in the order in which they are tried: the first that applies
    "nothing lost": f"the start is less than {100 * MARGIN:g} points of OOD accuracy below SFT's peak",
    "RL did not learn": "RL's mean return in the last tenth of its updates, less that in the first, does not lie "
    "above 0 with the whole interval, so that RL was not put to the test",
    "RL does not heal": "RL less its start: the interval does not reach above 0",
    "RL heals more": "RL less its start, and RL less every baseline that counts, lie above 0 with the whole interval",
    "a baseline heals more": "RL lies below some baseline that counts: one-sided paired t tests; the smallest p times "
    "their number is under 2.5 %",
    "level with a baseline": f"RL less the best baseline: the whole interval within {100 * MARGIN:g} points of 0",
    "undecided": "none of these",
}
VERDICTS = tuple(RULES)


@dataclass(frozen=True)
class Effect:
    """What RL did from one start of one condition.

    Attributes:
        effect: OOD(RL) - OOD(best baseline).
        best: that baseline.
        against: OOD(RL) - OOD(baseline) for every baseline that was run.
        behind: the baselines that end more than 2 points of ID accuracy below RL, and do not count.
        gain: OOD(RL) - OOD(start).
        trained: OOD(RL) - OOD(the best baseline that learns from right answers).
        held: ID(RL) - ID(best baseline).
        learnt: RL's mean return in the last tenth of its updates less that in the first; None where it is not known.
        verdict: one of `RULES`.
    """

    condition: str
    start: int
    effect: Estimate
    best: str
    against: dict[str, Estimate]
    behind: tuple[str, ...]
    gain: Estimate
    trained: Estimate
    held: Estimate
    learnt: Estimate | None
    verdict: str

    def __str__(self) -> str:
        return f"{self.condition}, from {self.start}"


def rules() -> pd.DataFrame:
    """The verdicts and when they are given; a row a verdict, in the order in which they are tried."""
    return pd.DataFrame({"the first that applies": list(RULES), "when": list(RULES.values())})


def wide(table: pd.DataFrame, split: str, metric: str = "accuracy") -> pd.DataFrame:
    """One row for each condition, start and seed; a column an arm, `start`, the SFT checkpoint itself, and `peak`."""
    rows = table[(table["split"] == split) & (table["metric"] == metric)]
    keys = ["condition", "from_step", "seed"]
    arms = rows[rows["stage"] == "rl"].pivot_table(index=keys, columns="arm", values="value")
    sft = rows[rows["stage"] == "sft"].set_index(["condition", "step", "seed"])["value"]
    arms["start"] = sft.reindex(arms.index)
    arms["peak"] = sft.groupby(["condition", "seed"]).max().reindex(arms.index.droplevel("from_step")).to_numpy()
    return arms


def effects(table: pd.DataFrame, metric: str = "accuracy", seeds: list[int] | None = None) -> list[Effect]:
    """The effect of every condition and start with RL and a baseline, in the table's order; of all seeds, or some."""
    if seeds is not None:
        table = table[table["seed"].isin(seeds)]
    results, held, returns = [], wide(table, "id", metric), _returns(table)
    for (condition, start), rows in wide(table, "ood", metric).groupby(level=["condition", "from_step"]):
        rows = rows.dropna(axis=1, how="all")
        arms = [arm for arm in rows if arm not in ("rl", "start", "peak")]
        baselines = [arm for arm in arms if BASELINES.get(arm).counts]
        if "rl" in rows and baselines:
            rows = rows.dropna(subset=["rl", *baselines])
            gained = returns.reindex(rows.index).dropna()
            results.append(_effect(condition, int(start), rows, held.loc[rows.index], gained, baselines))
    order = list(table["condition"].unique())
    return sorted(results, key=lambda effect: (order.index(effect.condition), effect.start))


def _returns(table: pd.DataFrame) -> pd.Series:
    """RL's mean return in the last tenth of the updates less that in the first, by condition, start and seed."""
    rows = table[(table["arm"] == "rl") & (table["split"] == "train")]
    keys = ["condition", "from_step", "seed"]
    first, last = (rows[rows["metric"] == f"reward_{end}"].set_index(keys)["value"] for end in ("first", "last"))
    return last - first


def _effect(
    condition: str, start: int, rows: pd.DataFrame, held: pd.DataFrame, gained: pd.Series, baselines: list[str]
) -> Effect:
    behind = tuple(b for b in baselines if (held["rl"] - held[b]).mean() > MARGIN)
    counted = [b for b in baselines if b not in behind] or baselines
    best = max(counted, key=lambda b: rows[b].mean())
    against = {b: over_seeds(rows["rl"] - rows[b]) for b in baselines}
    gain, lost = over_seeds(rows["rl"] - rows["start"]), (rows["peak"] - rows["start"]).mean()
    effect, learnt = against[best], over_seeds(gained) if len(gained) else None
    if lost < MARGIN:
        verdict = "nothing lost"
    elif learnt and learnt.n > 1 and not learnt.low > 0:
        verdict = "RL did not learn"
    elif gain.high <= 0:
        verdict = "RL does not heal"
    elif gain.low > 0 and all(against[b].low > 0 for b in counted):
        verdict = "RL heals more"
    elif _below(rows, counted):
        verdict = "a baseline heals more"
    elif effect.low > -MARGIN and effect.high < MARGIN:
        verdict = "level with a baseline"
    else:
        verdict = "undecided"
    trained = max(set(TRAINED) & set(baselines), key=lambda b: rows[b].mean(), default=best)
    kept = over_seeds(held["rl"] - held[best])
    return Effect(condition, start, effect, best, against, behind, gain, against[trained], kept, learnt, verdict)


def _below(rows: pd.DataFrame, baselines: list[str]) -> bool:
    """Whether RL is below some baseline: the smallest of one-sided p values, times their number, is under 2.5 %."""
    if len(rows) < 2:
        return False
    p = [stats.ttest_rel(rows["rl"], rows[b], alternative="less").pvalue for b in baselines]
    return bool(np.nanmin(p) * len(p) < 0.025)


def brief(effects: list[Effect]) -> pd.DataFrame:
    """A row a condition and start, differences of accuracy in points."""
    rows = {str(e): (points(e.gain), _label(e.best), points(e.effect), points(e.held), e.verdict) for e in effects}
    columns = ["RL - start", "best baseline", "RL - best baseline", "the same on ID", "verdict"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def beside_the_paper(effects: list[Effect]) -> pd.DataFrame:
    """RL less its start, and less the best baseline that trains, in points: the paper's, then `effects`."""
    rows = {f"the paper, {name}": (f"{gain:+.1f}", "not measured") for name, gain in paper_gains().items()}
    rows |= {str(e): (points(e.gain), points(e.trained)) for e in effects}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["RL - start", "RL - best baseline that trains"])


def paper_gains() -> dict[str, float]:
    """The paper's own comparison, OOD(RL) - OOD(the checkpoint from which it starts), in points.

    LLaMA has a curve by start; for Qwen the paper gives no start, only its "moderate" checkpoint.
    """
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    gains = {step: rl - sft for step, sft, rl in zip(curve["step"], curve["sft"], curve["rl_from_step"], strict=True)}
    best = curve["step"][int(np.argmax(curve["rl_from_step"]))]
    qwen = PAPER["stages"]["qwen-2.5-7b"]["ood"]
    return {
        f"LLaMA 3.2 11B, from step {best}, the best of {len(gains)} starts": gains[best],
        f"LLaMA 3.2 11B, mean of the {len(gains)} starts": np.mean(list(gains.values())),
        'Qwen 2.5 7B, less its "moderate" checkpoint': qwen["rl"] - qwen["sft_moderate"],
    }


def answer(effects: list[Effect]) -> str:
    """A plain answer in Markdown, computed."""
    idle = [e for e in effects if e.verdict == "RL did not learn"]
    asked = [e for e in effects if e.verdict != "nothing lost" and e not in idle]
    if not asked:
        return "No start from which RL learnt had lost OOD accuracy, so there was nothing to heal."
    counts = {verdict: sum(e.verdict == verdict for e in asked) for verdict in VERDICTS}
    verdicts = ", ".join(f"**{n}** {verdict}" for verdict, n in counts.items() if n)
    alike = [e.against["rejection_sampling"] for e in asked if "rejection_sampling" in e.against]
    less = {
        "its start (the paper's comparison)": [e.gain for e in asked],
        "rejection sampling (the same problems and checker)": alike,
        "its best baseline": [e.effect for e in asked],
    }
    means = "; ".join(f"less {name} {100 * np.mean([x.value for x in xs]):+.1f}" for name, xs in less.items() if xs)
    lines = [
        f"Of {len(asked)} starts that had lost OOD accuracy and from which RL learnt: {verdicts}. Means over these "
        f"starts, in points of OOD accuracy: RL {means}.",
        f"The best baseline is the one with the highest mean, which goes against RL, of those at most {100 * MARGIN:g} "
        "points of ID accuracy below RL. Intervals are not corrected for the number of starts.",
    ]
    if behind := dict.fromkeys(_label(b) for e in asked for b in e.behind):
        lines[-1] += f" Not counted somewhere, for they end further below: {'; '.join(behind)}."
    if idle:
        where = "; ".join(map(str, idle))
        lines.append(f"Left out, for RL's return did not rise there, so that RL was not put to the test: {where}.")
    return "\n\n".join(lines)


def _label(baseline: str) -> str:
    return BASELINES.get(baseline).label
