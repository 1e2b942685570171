"""When does RL heal? The campaign's analysis, written before its confirming runs.

The effect of a regime at a start is OOD(RL) - OOD(best control), in accuracy on every OOD hand. The best control is
the one with the highest mean over the seeds; intervals are Student's t over seeds, paired within a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

from oodlib.campaign import Plan
from oodlib.stats import Estimate, over_seeds

CONTROLS = (
    "sft_continued",
    "rejection_sampling",
    "averaging",
    "interpolation_base",
    "random_reward",
    "format_reward",
)
VERDICTS = ("RL heals more", "a control heals as much", "undecided", "nothing lost")
LOST = 0.02  # OOD accuracy below the regime's own peak by less than this is not lost


@dataclass(frozen=True)
class Effect:
    """What RL did from one start of one regime.

    Attributes:
        effect: OOD(RL) - OOD(best control).
        best: that control.
        against: OOD(RL) - OOD(control) for every control that was run.
        gain: OOD(RL) - OOD(start).
        verdict: "RL heals more": RL ends above its start and above every control, each with the whole interval.
            "a control heals as much": RL does not end above its start, or not above some control, with the whole
            interval. "nothing lost": the start is not below the peak. Otherwise "undecided".
    """

    regime: str
    start: int
    effect: Estimate
    best: str
    against: dict[str, Estimate]
    gain: Estimate
    verdict: str


def wide(table: pd.DataFrame, split: str, metric: str = "accuracy") -> pd.DataFrame:
    """One row for each regime, start and seed; a column an arm, and `start`, the SFT checkpoint itself."""
    mine = table[(table["split"] == split) & (table["metric"] == metric)]
    keys = ["regime", "from_step", "seed"]
    arms = mine[mine["stage"] == "rl"].pivot_table(index=keys, columns="arm", values="value")
    sft = mine[mine["stage"] == "sft"].set_index(["regime", "step", "seed"])["value"]
    arms["start"] = sft.reindex(arms.index)
    arms["peak"] = sft.groupby(["regime", "seed"]).max().reindex(arms.index.droplevel("from_step")).to_numpy()
    return arms


def effects(table: pd.DataFrame, metric: str = "accuracy", seeds: list[int] | None = None) -> list[Effect]:
    """The effect of every regime and start that has RL and a control; of all seeds, or of some."""
    if seeds is not None:
        table = table[table["seed"].isin(seeds)]
    found = []
    for (regime, start), rows in wide(table, "ood", metric).groupby(level=["regime", "from_step"]):
        rows = rows.dropna(axis=1, how="all")
        controls = [c for c in CONTROLS if c in rows]
        if "rl" in rows and controls:
            found.append(_effect(regime, int(start), rows.dropna(subset=["rl", *controls]), controls))
    return found


def _effect(regime: str, start: int, rows: pd.DataFrame, controls: list[str]) -> Effect:
    best = max(controls, key=lambda c: rows[c].mean())
    against = {c: over_seeds(rows["rl"] - rows[c]) for c in controls}
    gain, lost = over_seeds(rows["rl"] - rows["start"]), over_seeds(rows["peak"] - rows["start"])
    if lost.value < LOST:
        verdict = "nothing lost"
    elif gain.low > 0 and all(a.low > 0 for a in against.values()):
        verdict = "RL heals more"
    elif gain.high <= 0 or any(a.high <= 0 for a in against.values()):
        verdict = "a control heals as much"
    else:
        verdict = "undecided"
    return Effect(regime, start, against[best], best, against, gain, verdict)


def as_table(found: list[Effect]) -> pd.DataFrame:
    """The effects, a row each, for a notebook or a file."""

    def text(e: Estimate) -> str:
        return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"

    rows = [
        {
            "regime": f.regime,
            "from step": f.start,
            "seeds": f.effect.n,
            "RL - start": text(f.gain),
            "best control": f.best,
            "RL - best control": text(f.effect),
            "verdict": f.verdict,
        }
        for f in found
    ]
    return pd.DataFrame(rows)


def explained(table: pd.DataFrame, plan: Plan, metric: str = "accuracy") -> pd.DataFrame:
    """A linear mixed model of the effect: which factors go with it? A row a term: coefficient and 95 % interval.

    Fixed terms: OOD accuracy at the start, ID headroom there (1 - ID accuracy), both in tenths and centred, and
    whether RL played several tries; a random intercept a seed (statsmodels' MixedLM, REML). The effect here is
    against the better of the two trained controls.
    """
    ood, held = wide(table, "ood", metric), wide(table, "id", metric)
    rows = ood.assign(
        effect=ood["rl"] - ood[["sft_continued", "rejection_sampling"]].max(axis=1),
        start_ood=10 * (ood["start"] - ood["start"].mean()),
        headroom=10 * (held["start"].mean() - held["start"]),
    ).reset_index()
    turns = {name: plan.preset(name, 0).turns_in_rl for name in rows["regime"].unique()}
    rows["several_tries"] = rows["regime"].map(turns).gt(1).astype(float)
    rows = rows.dropna(subset=["effect", "start_ood", "headroom"])
    terms = [t for t in ("start_ood", "headroom", "several_tries") if rows[t].nunique() > 1]
    fit = smf.mixedlm("effect ~ " + " + ".join(terms), rows, groups=rows["seed"]).fit(reml=True)
    bounds = fit.conf_int()
    names = ["Intercept", *terms]
    return pd.DataFrame(
        {
            "term": names,
            "coefficient": [fit.params[n] for n in names],
            "low": [bounds.loc[n, 0] for n in names],
            "high": [bounds.loc[n, 1] for n in names],
            "n": len(rows),
        }
    )


def turned(table: pd.DataFrame) -> pd.DataFrame:
    """How far each arm turned the leading singular vectors, and whether towards the peak's.

    One row for each regime, start, arm and seed: `angle`, mean principal angle (radians) between start and end of the
    arm; `towards_peak`, how much smaller the angle to the OOD peak's vectors became (negative: larger).
    """
    mine = table[(table["stage"] == "rotation") & table["metric"].isin(["mean_angle_left", "mean_angle_right"])]
    mean = mine.groupby(["regime", "arm", "from_step", "seed"])["value"].mean()
    rows = []
    for (regime, arm, start, seed), angle in mean.items():
        after = mean.get((regime, f"{arm} to peak", start, seed))
        before = mean.get((regime, "sft to peak", start, seed))
        if arm != "sft" and not arm.endswith(" to peak"):
            towards = np.nan if after is None or before is None else before - after
            rows.append((regime, arm, start, seed, angle, towards))
    return pd.DataFrame(rows, columns=["regime", "arm", "from_step", "seed", "angle", "towards_peak"])
