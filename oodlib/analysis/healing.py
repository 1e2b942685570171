"""When does RL heal? The sweep's analysis.

The effect of a condition at a start is OOD(RL) - OOD(best baseline), in accuracy on every OOD problem. The best
baseline is the one with the highest mean over the seeds, of those that end at most 2 points of ID accuracy below RL.
Intervals are Student's t over seeds, paired within a seed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.analysis.claims import PAPER, points
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.registry import BASELINES

MARGIN = 0.02  # of accuracy: smaller differences are none
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


@dataclass(frozen=True)
class Effect:
    """What RL did from one start of one condition; accuracies are shares, differences are paired within a seed."""

    condition: str
    start: int
    effect: Estimate  # OOD(RL) - OOD(best baseline)
    best: str  # that baseline
    against: dict[str, Estimate]  # OOD(RL) - OOD(baseline) for every baseline that was run
    behind: tuple[str, ...]  # baselines that end more than 2 points of ID accuracy below RL, and do not count
    gain: Estimate  # OOD(RL) - OOD(start)
    held: Estimate  # ID(RL) - ID(best baseline)
    learnt: Estimate | None  # RL's mean return in the last tenth of its updates less that in the first, where known
    verdict: str  # one of `RULES`

    def __str__(self) -> str:
        return f"{self.condition}, from {self.start}"


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
    results, held, rises = [], wide(table, "id", metric), _rises(table)
    for (condition, start), rows in wide(table, "ood", metric).groupby(level=["condition", "from_step"]):
        rows = rows.dropna(axis=1, how="all")
        baselines = [arm for arm in rows if arm not in ("rl", "start", "peak") and BASELINES.get(arm).counts]
        if "rl" in rows and baselines:
            rows = rows.dropna(subset=["rl", *baselines])
            rise = rises.reindex(rows.index).dropna()
            results.append(_effect(condition, int(start), rows, held.loc[rows.index], rise, baselines))
    order = list(table["condition"].unique())
    return sorted(results, key=lambda effect: (order.index(effect.condition), effect.start))


def _rises(table: pd.DataFrame) -> pd.Series:
    """RL's mean return in the last tenth of the updates less that in the first, by condition, start and seed."""
    rows = table[(table["arm"] == "rl") & (table["split"] == "train")]
    keys, ends = ["condition", "from_step", "seed"], ["reward_first", "reward_last"]
    returns = rows.pivot_table("value", keys, "metric").reindex(columns=ends)
    return returns["reward_last"] - returns["reward_first"]


def _effect(
    condition: str, start: int, rows: pd.DataFrame, held: pd.DataFrame, rise: pd.Series, baselines: list[str]
) -> Effect:
    """`rows` and `held` are OOD and ID accuracies, a row a seed and a column an arm."""
    behind = tuple(b for b in baselines if (held["rl"] - held[b]).mean() > MARGIN)
    counted = [b for b in baselines if b not in behind] or baselines
    best = max(counted, key=lambda b: rows[b].mean())
    against = {b: over_seeds(rows["rl"] - rows[b]) for b in baselines}
    gain, effect = over_seeds(rows["rl"] - rows["start"]), against[best]
    learnt = over_seeds(rise) if len(rise) else None
    p = [stats.ttest_rel(rows["rl"], rows[b], alternative="less").pvalue for b in counted] if len(rows) > 1 else [1.0]
    applies = {
        "nothing lost": (rows["peak"] - rows["start"]).mean() < MARGIN,
        "RL did not learn": learnt is not None and learnt.n > 1 and not learnt.low > 0,
        "RL does not heal": gain.high <= 0,
        "RL heals more": gain.low > 0 and all(against[b].low > 0 for b in counted),
        "a baseline heals more": np.nanmin(p) * len(p) < 0.025,
        "level with a baseline": effect.low > -MARGIN and effect.high < MARGIN,
        "undecided": True,
    }
    verdict = next(name for name in RULES if applies[name])
    at_id = over_seeds(held["rl"] - held[best])
    return Effect(condition, start, effect, best, against, behind, gain, at_id, learnt, verdict)


def brief(effects: list[Effect]) -> pd.DataFrame:
    """A row a condition and start, differences of accuracy in points; the baselines that do not count are named."""
    rows = {}
    for e in effects:
        best, *behind = (BASELINES.get(b).label for b in (e.best, *e.behind))
        rows[str(e)] = (points(e.gain), best, points(e.effect), points(e.held), ", ".join(behind), e.verdict)
    columns = ["RL - start", "best baseline", "RL - best baseline", "the same on ID", "not counted", "verdict"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def paper_gains() -> dict[str, float]:
    """The paper's own comparison, OOD(RL) - OOD(the checkpoint from which it starts), in points.

    LLaMA has a curve by start; for Qwen the paper gives no start, only its "moderate" checkpoint.
    """
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    gains = np.subtract(curve["rl_from_step"], curve["sft"])
    best = int(np.argmax(curve["rl_from_step"]))
    qwen = PAPER["stages"]["qwen-2.5-7b"]["ood"]
    return {
        f"LLaMA 3.2 11B, from step {curve['step'][best]}, the best of {len(gains)} starts": float(gains[best]),
        f"LLaMA 3.2 11B, mean of the {len(gains)} starts": float(gains.mean()),
        'Qwen 2.5 7B, less its "moderate" checkpoint': qwen["rl"] - qwen["sft_moderate"],
    }


def answer(effects: list[Effect]) -> str:
    """A plain answer in Markdown, computed: the verdicts, and mean differences over the starts."""
    tested = [e for e in effects if e.verdict not in ("nothing lost", "RL did not learn")]
    if not tested:
        return "No start from which RL learnt had lost OOD accuracy, so there was nothing to heal."
    counts = Counter(e.verdict for e in tested)
    verdicts = ", ".join(f"**{counts[verdict]}** {verdict}" for verdict in RULES if counts[verdict])
    differences = {
        "its start (the paper's comparison)": [e.gain for e in tested],
        "rejection sampling (the same problems and checker)": [
            e.against["rejection_sampling"] for e in tested if "rejection_sampling" in e.against
        ],
        "its best baseline": [e.effect for e in tested],
    }
    means = {name: 100 * np.mean([x.value for x in values]) for name, values in differences.items() if values}
    return (
        f"Of {len(tested)} starts that had lost OOD accuracy and from which RL learnt: {verdicts}. Means over these "
        f"starts, in points of OOD accuracy: RL {'; '.join(f'less {name} {x:+.1f}' for name, x in means.items())}. "
        "Intervals are not corrected for the number of starts."
    )
