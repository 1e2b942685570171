"""When does RL heal? The campaign's analysis, written before its confirming runs.

The effect of a regime at a start is OOD(RL) - OOD(best control), in accuracy on every OOD hand. The best control is
the one with the highest mean over the seeds; intervals are Student's t over seeds, paired within a seed.
"""

from __future__ import annotations

import warnings
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
TRAINED = ("sft_continued", "rejection_sampling")
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
        trained: OOD(RL) - OOD(the better of the two controls that train on right answers).
        held: ID(RL) - ID(best control), for a control may buy OOD accuracy with ID accuracy.
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
    trained: Estimate
    held: Estimate
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
    """The effect of every regime and start that has RL and a control, in the table's order; of all seeds, or of some."""
    if seeds is not None:
        table = table[table["seed"].isin(seeds)]
    found, held = [], wide(table, "id", metric)
    for (regime, start), rows in wide(table, "ood", metric).groupby(level=["regime", "from_step"]):
        rows = rows.dropna(axis=1, how="all")
        controls = [c for c in CONTROLS if c in rows]
        if "rl" in rows and controls:
            rows = rows.dropna(subset=["rl", *controls])
            found.append(_effect(regime, int(start), rows, held.loc[rows.index], controls))
    order = list(table["regime"].unique())
    return sorted(found, key=lambda f: (order.index(f.regime), f.start))


def _effect(regime: str, start: int, rows: pd.DataFrame, held: pd.DataFrame, controls: list[str]) -> Effect:
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
    trained = max(set(TRAINED) & set(controls), key=lambda c: rows[c].mean(), default=best)
    kept = over_seeds(held["rl"] - held[best])
    return Effect(regime, start, against[best], best, against, gain, against[trained], kept, verdict)


def as_table(found: list[Effect]) -> pd.DataFrame:
    """The effects, a row each, for a notebook or a file."""

    rows = [
        {
            "regime": f.regime,
            "from step": f.start,
            "seeds": f.effect.n,
            "RL - start": _points(f.gain),
            "best control": f.best,
            "RL - best control": _points(f.effect),
            "the same on ID": _points(f.held),
            "RL - best trained control": _points(f.trained),
            "verdict": f.verdict,
        }
        for f in found
    ]
    return pd.DataFrame(rows)


def answer(found: list[Effect], first: list[Effect]) -> str:
    """A plain answer in Markdown, computed: from the effects on success within all tries, and at the first try."""
    asked = [f for f in found if f.verdict != "nothing lost"]
    count = {v: [f for f in asked if f.verdict == v] for v in VERDICTS}
    lines = [
        f"Of {len(asked)} starts that had lost OOD accuracy, RL heals more than every control in "
        f"**{len(count['RL heals more'])}**, a control heals at least as much in "
        f"**{len(count['a control heals as much'])}**, and {len(count['undecided'])} stay undecided."
    ]
    if not asked:
        return lines[0]
    top, low = (pick(asked, key=lambda f: f.effect.value) for pick in (max, min))
    lines.append(
        f"RL less the best control lies between {_points(low.effect)} points ({low.regime}, from step {low.start}; the "
        f"best there: {low.best.replace('_', ' ')}) and {_points(top.effect)} points ({top.regime}, from step "
        f"{top.start}; the best there: {top.best.replace('_', ' ')})."
    )
    raised = [f for f in asked if f.gain.low > 0]
    lines.append(
        f"Against its own start, doing nothing, which is the paper's comparison, RL raises OOD accuracy in "
        f"{len(raised)} of them; the mean change is {100 * np.mean([f.gain.value for f in asked]):+.1f} points."
    )
    same = {(f.regime, f.start): f for f in first}
    pairs = [(f, same[f.regime, f.start]) for f in asked if (f.regime, f.start) in same]
    if pairs:
        all_tries, one_try = (100 * np.mean([p[i].gain.value for p in pairs]) for i in (0, 1))
        lines.append(
            f"At the first try alone the mean change is {one_try:+.1f} points, within all tries {all_tries:+.1f}: "
            "the difference is what RL did to the use of the checker's messages."
        )
    return "\n\n".join(lines)


def _points(e: Estimate) -> str:
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"


def remedies(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """ID and OOD accuracy at the end of SFT, and after RL from there; a row a remedy and seed.

    `names`: what each regime is called. Columns remedy, seed, id, ood, rl_id, rl_ood (NaN where RL was not run).
    """
    frames = []
    for regime, name in names.items():
        mine = table[(table["regime"] == regime) & (table["metric"] == "accuracy")]
        sft = mine[mine["stage"] == "sft"]
        end = sft[sft["step"] == sft["step"].max()].pivot_table(index="seed", columns="split", values="value")
        rl = mine[(mine["arm"] == "rl") & (mine["from_step"] == sft["step"].max())]
        after = rl.pivot_table(index="seed", columns="split", values="value").reindex(end.index, columns=["id", "ood"])
        frames.append(end[["id", "ood"]].assign(remedy=name, rl_id=after["id"], rl_ood=after["ood"]).reset_index())
    columns = ["remedy", "seed", "id", "ood", "rl_id", "rl_ood"]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def at_peak(table: pd.DataFrame, regime: str) -> pd.DataFrame:
    """ID and OOD accuracy of each seed's checkpoint with the highest OOD accuracy: columns seed, id, ood."""
    sft = table[(table["regime"] == regime) & (table["stage"] == "sft") & (table["metric"] == "accuracy")]
    both = sft.pivot_table(index=["seed", "step"], columns="split", values="value")
    return both.loc[both.groupby("seed")["ood"].idxmax()].reset_index()[["seed", "id", "ood"]]


def best_remedies(found: pd.DataFrame, plain: str) -> str:
    """In Markdown, computed: what keeps OOD accuracy at no cost in ID accuracy, and what gives RL the best start."""
    base = found[found["remedy"] == plain].set_index("seed")
    kept, free = [], []
    for name, mine in found[found["remedy"] != plain].groupby("remedy", sort=False):
        mine = mine.set_index("seed")
        held, ood = over_seeds((mine["id"] - base["id"]).dropna()), over_seeds((mine["ood"] - base["ood"]).dropna())
        if ood.low > 0:
            kept.append(f"{name} ({_points(ood)} OOD, {_points(held)} ID)")
            free += [name] if held.high >= 0 else []
    lines = [
        "**What was seen.** OOD accuracy above plain SFT's, with the whole interval: "
        + ("; ".join(kept) or "none")
        + "."
    ]
    lines.append("Of these, ID accuracy is not shown to be lower for: " + (", ".join(free) or "none") + ".")
    after = found.dropna(subset=["rl_ood"]).groupby("remedy")[["rl_id", "rl_ood"]].mean()
    if len(after):
        best = after["rl_ood"].idxmax()
        lines.append(
            f"After RL the highest mean OOD accuracy is that of **{best}** ({after.loc[best, 'rl_ood']:.1%}, with "
            f"{after.loc[best, 'rl_id']:.1%} on ID hands)."
        )
    return "\n\n".join(lines)


def compare_remedies(found: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Each remedy less plain SFT, paired within a seed, in points with 95 % intervals over seeds; a row a remedy."""
    base = found[found["remedy"] == plain].set_index("seed")
    rows = []
    for name, mine in found.groupby("remedy", sort=False):
        mine = mine.set_index("seed")
        row = {"remedy": name, "seeds": len(mine)}
        for column, title in (("id", "ID"), ("ood", "OOD"), ("rl_id", "ID after RL"), ("rl_ood", "OOD after RL")):
            gap = (mine[column] - base[column]).dropna()
            row[title] = "" if gap.empty or name == plain else _points(over_seeds(gap))
        rows.append(row)
    return pd.DataFrame(rows)


def explained(table: pd.DataFrame, plan: Plan, metric: str = "accuracy") -> pd.DataFrame:
    """A linear mixed model of the effect: which factors go with it? A row a term: coefficient and 95 % interval.

    Fixed terms: OOD accuracy at the start, ID headroom there (1 - ID accuracy), both in tenths and centred, and
    whether RL played several tries; a random intercept a seed (statsmodels' MixedLM, REML). The effect here is
    against the better of the two trained controls.
    """
    ood, held = wide(table, "ood", metric), wide(table, "id", metric)
    rows = ood.assign(
        effect=ood["rl"] - ood[list(TRAINED)].max(axis=1),
        start_ood=10 * (ood["start"] - ood["start"].mean()),
        headroom=10 * (held["start"].mean() - held["start"]),
    ).reset_index()
    turns = {name: plan.preset(name, 0).turns_in_rl for name in rows["regime"].unique()}
    rows["several_tries"] = rows["regime"].map(turns).gt(1).astype(float)
    rows = rows.dropna(subset=["effect", "start_ood", "headroom"])
    terms = [t for t in ("start_ood", "headroom", "several_tries") if rows[t].nunique() > 1]
    with warnings.catch_warnings():  # the seeds' variance may be 0, on the boundary
        warnings.simplefilter("ignore")
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
