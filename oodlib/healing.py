"""When does RL heal? The campaign's analysis.

The effect of a regime at a start is OOD(RL) - OOD(best control), in accuracy on every OOD hand. The best control is
the one with the highest mean over the seeds, among those whose mean ID accuracy ends at most
2 points below RL's. Intervals are Student's t over seeds, paired within a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.plotting import NAMES
from oodlib.stats import Estimate, over_seeds

TRAINED = ("sft_continued", "rejection_sampling")
CONTROLS = (*TRAINED, "averaging", "interpolation_base", "random_reward", "format_reward")
MARGIN = 0.02  # of accuracy: smaller differences are none
VERDICTS = (
    "RL heals more",
    "as much as a control",
    "a control heals more",
    "RL does not heal",
    "undecided",
    "RL did not learn",
    "nothing lost",
)


@dataclass(frozen=True)
class Effect:
    """What RL did from one start of one regime.

    Attributes:
        effect: OOD(RL) - OOD(best control).
        best: that control.
        against: OOD(RL) - OOD(control) for every control that was run.
        behind: the controls that end more than 2 points of ID accuracy below RL, and do not count.
        gain: OOD(RL) - OOD(start).
        trained: OOD(RL) - OOD(the better of the two controls that train on right answers).
        held: ID(RL) - ID(best control).
        learnt: RL's mean return in the last tenth of its updates less that in the first; None where it is not known.
        verdict: "nothing lost": the start is less than 2 points below the peak. "RL did not learn": the interval of
            `learnt` does not lie above 0, so that RL was not put to the test. "RL does not heal": the interval of
            `gain` does not reach above 0. "RL heals more": `gain`, and RL less every control that counts, lie above 0
            with the whole interval. "a control heals more": RL lies below some control that counts (t test, Holm's
            correction over the controls). "as much as a control": the interval of `effect` lies within 2 points
            either way. Else "undecided". The first that applies.
    """

    regime: str
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
    """The effect of every regime and start that has RL and a control, in the table's order; of all seeds, or some."""
    if seeds is not None:
        table = table[table["seed"].isin(seeds)]
    found, held, returns = [], wide(table, "id", metric), _returns(table)
    for (regime, start), rows in wide(table, "ood", metric).groupby(level=["regime", "from_step"]):
        rows = rows.dropna(axis=1, how="all")
        controls = [c for c in CONTROLS if c in rows]
        if "rl" in rows and controls:
            rows = rows.dropna(subset=["rl", *controls])
            gained = returns.reindex(rows.index).dropna()
            found.append(_effect(regime, int(start), rows, held.loc[rows.index], gained, controls))
    order = list(table["regime"].unique())
    return sorted(found, key=lambda f: (order.index(f.regime), f.start))


def _returns(table: pd.DataFrame) -> pd.Series:
    """RL's mean return in the last tenth of the updates less that in the first, by regime, start and seed."""
    mine = table[(table["arm"] == "rl") & (table["split"] == "train")]
    keys = ["regime", "from_step", "seed"]
    first, last = (mine[mine["metric"] == f"reward_{end}"].set_index(keys)["value"] for end in ("first", "last"))
    return last - first


def _effect(
    regime: str, start: int, rows: pd.DataFrame, held: pd.DataFrame, gained: pd.Series, controls: list[str]
) -> Effect:
    behind = tuple(c for c in controls if (held["rl"] - held[c]).mean() > MARGIN)
    counted = [c for c in controls if c not in behind] or controls
    best = max(counted, key=lambda c: rows[c].mean())
    against = {c: over_seeds(rows["rl"] - rows[c]) for c in controls}
    gain, lost = over_seeds(rows["rl"] - rows["start"]), (rows["peak"] - rows["start"]).mean()
    effect, learnt = against[best], over_seeds(gained) if len(gained) else None
    if lost < MARGIN:
        verdict = "nothing lost"
    elif learnt and learnt.n > 1 and not learnt.low > 0:
        verdict = "RL did not learn"
    elif gain.high <= 0:
        verdict = "RL does not heal"
    elif gain.low > 0 and all(against[c].low > 0 for c in counted):
        verdict = "RL heals more"
    elif _below(rows, counted):
        verdict = "a control heals more"
    elif effect.low > -MARGIN and effect.high < MARGIN:
        verdict = "as much as a control"
    else:
        verdict = "undecided"
    trained = max(set(TRAINED) & set(controls), key=lambda c: rows[c].mean(), default=best)
    kept = over_seeds(held["rl"] - held[best])
    return Effect(regime, start, effect, best, against, behind, gain, against[trained], kept, learnt, verdict)


def _below(rows: pd.DataFrame, controls: list[str]) -> bool:
    """Whether RL is below some control: the smallest of one-sided p values, times their number, is under 2.5 %."""
    if len(rows) < 2:
        return False
    p = [stats.ttest_rel(rows["rl"], rows[c], alternative="less").pvalue for c in controls]
    return bool(np.nanmin(p) * len(p) < 0.025)


def as_table(found: list[Effect]) -> pd.DataFrame:
    """The effects, a row each, with all that is known of them; differences of accuracy in points."""
    rows = [
        {
            "regime": f.regime,
            "from step": f.start,
            "seeds": f.effect.n,
            "RL - start": _points(f.gain),
            "best control": f.best,
            "does not count": ", ".join(f.behind),
            "RL - best control": _points(f.effect),
            "the same on ID": _points(f.held),
            "RL - best trained control": _points(f.trained),
            "RL's return rose by": _numbers(f.learnt) if f.learnt else "",
            "verdict": f.verdict,
        }
        for f in found
    ]
    return pd.DataFrame(rows)


def brief(found: list[Effect]) -> pd.DataFrame:
    """Of `as_table` what a page has room for, a row a regime and start."""
    table = as_table(found)
    table.index = table["regime"] + ", from " + table["from step"].astype(str)
    table["best control"] = [NAMES[f.best].split(": ")[-1] for f in found]
    return table[["RL - start", "best control", "RL - best control", "the same on ID", "verdict"]]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """OOD / ID accuracy in percent of the start and of every arm, means over seeds; empty where an arm was not run."""
    keys = ["regime", "from_step"]
    ood, held = ((100 * wide(table, split)).groupby(level=keys).mean() for split in ("ood", "id"))
    order = [arm for arm in ("start", "rl", *CONTROLS, "interpolation_peak") if arm in ood]
    found = pd.DataFrame({arm: ood[arm].map("{:.1f}".format) + " / " + held[arm].map("{:.1f}".format) for arm in order})
    found = found.where(ood[order].notna(), "")
    found.index = [f"{regime}, from {start}" for regime, start in found.index]
    return found


def answer(found: list[Effect], first: list[Effect]) -> str:
    """A plain answer in Markdown, computed: from the effects on success within all tries, and at the first try."""
    idle = [f for f in found if f.verdict == "RL did not learn"]
    asked = [f for f in found if f.verdict != "nothing lost" and f not in idle]
    if not asked:
        return "No start from which RL learnt had lost OOD accuracy, so there was nothing to heal."
    count = {v: sum(f.verdict == v for f in asked) for v in VERDICTS}
    lines = [
        f"Of {len(asked)} starts that had lost OOD accuracy and from which RL learnt: "
        + ", ".join(f"**{n}** {v}" for v, n in count.items() if n)
    ]
    if idle:
        where = ", ".join(f"{f.regime}, from step {f.start}" for f in idle)
        lines.append(f"Left out, for RL's return did not rise there, so that RL was not put to the test: {where}.")
    top, low = (pick(asked, key=lambda f: f.effect.value) for pick in (max, min))
    where = [
        f"{_points(f.effect)} points ({f.regime}, from step {f.start}, {f.best.replace('_', ' ')})" for f in (low, top)
    ]
    lines.append(
        "RL less the best control (of those at most 2 points of ID accuracy below RL; chosen by its mean, which goes "
        f"against RL) lies between {where[0]} and {where[1]}. No interval is corrected for the number of starts."
    )
    alike = [f.against["rejection_sampling"] for f in asked if "rejection_sampling" in f.against]
    if alike:
        each = ", ".join(_points(e) for e in alike)
        lines.append(f"RL less rejection sampling, which learns from the same problems and checker: {each} points.")
    raised = sum(f.gain.low > 0 for f in asked)
    lines.append(
        f"Against its own start, doing nothing, which is the paper's comparison, RL raises OOD accuracy in {raised} of "
        f"them; the mean change is {100 * np.mean([f.gain.value for f in asked]):+.1f} points."
    )
    behind = sorted({c.replace("_", " ") for f in asked for c in f.behind})
    if behind:
        lines.append(
            f"Not counted somewhere, for they end more than 2 points of ID accuracy below RL: {', '.join(behind)}."
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


def _numbers(e: Estimate) -> str:
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"


def _points(e: Estimate) -> str:
    return f"{100 * e.value:+.1f} [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"


def remedies(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """ID and OOD accuracy at the end of SFT, and after RL from there; a row a remedy and seed.

    `names`: what each regime is called. Columns remedy, seed, id, ood, rl_id, rl_ood (NaN where RL was not run).
    """
    frames = []
    names = {regime: name for regime, name in names.items() if regime in set(table["regime"])}
    if not names:
        raise ValueError("no rows of any remedy: run `oodlib campaign remedies` first")
    for regime, name in names.items():
        mine = table[(table["regime"] == regime) & (table["metric"] == "accuracy")]
        sft = mine[mine["stage"] == "sft"]
        end = sft[sft["step"] == sft["step"].max()].pivot_table(index="seed", columns="split", values="value")
        rl = mine[(mine["arm"] == "rl") & (mine["from_step"] == sft["step"].max())]
        after = rl.pivot_table(index="seed", columns="split", values="value").reindex(end.index, columns=["id", "ood"])
        frames.append(end[["id", "ood"]].assign(remedy=name, rl_id=after["id"], rl_ood=after["ood"]).reset_index())
    return pd.concat(frames, ignore_index=True)[["remedy", "seed", "id", "ood", "rl_id", "rl_ood"]]


def at_peak(table: pd.DataFrame, regime: str) -> pd.DataFrame:
    """ID and OOD accuracy of each seed's checkpoint with the highest OOD accuracy: columns seed, id, ood."""
    sft = table[(table["regime"] == regime) & (table["stage"] == "sft") & (table["metric"] == "accuracy")]
    both = sft.pivot_table(index=["seed", "step"], columns="split", values="value")
    return both.loc[both.groupby("seed")["ood"].idxmax()].reset_index()[["seed", "id", "ood"]]


def ways_of_sft(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Ways of SFT by name, at the same steps: accuracy in percent, rotation from the base in degrees; mean and,
    of several seeds, 95 % interval."""
    rows = {}
    for name, table in runs.items():
        sft = table[(table["stage"] == "sft") & table["metric"].isin(["accuracy", "rotation"])]
        by_step = sft.pivot_table(index="step", columns=["split", "seed"], values="value")
        end, peak = by_step.iloc[-1], by_step["ood"].max()
        rows[name] = {
            "OOD at its peak (%)": _mean(100 * peak),
            "OOD at the end (%)": _mean(100 * end["ood"]),
            "ID at the end (%)": _mean(100 * end["id"]),
            "turned at the end (°)": _mean(np.degrees(end["weights"])),
        }
    return pd.DataFrame(rows).T


def _mean(values: pd.Series) -> str:
    found = over_seeds(values)
    return f"{found.value:.1f}" + (f" [{found.low:.1f}, {found.high:.1f}]" if len(values) > 1 else "")


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


def contrasts(table: pd.DataFrame, pairs: list[tuple[tuple[str, int], tuple[str, int]]]) -> pd.DataFrame:
    """What a factor changes in RL's gain, OOD(RL) - OOD(start): the difference of two regimes, paired within a seed.

    A row a pair of (regime, start), for the first try and for all tries: points with the t interval, and with a
    bootstrap interval over seeds (BCa, scipy), which needs no normal errors.
    """
    rows = []
    for metric in ("accuracy@1", "accuracy"):
        ood = wide(table, "ood", metric)
        gain = (ood["rl"] - ood["start"]).unstack("seed")
        for a, b in pairs:
            if a in gain.index and b in gain.index:
                gap = (gain.loc[a] - gain.loc[b]).dropna()
                rows.append(
                    {
                        "difference": f"{a[0]} from {a[1]} - {b[0]} from {b[1]}",
                        "tries": "first" if metric.endswith("@1") else "all",
                        "RL's gain differs by (t)": _points(over_seeds(gap)),
                        "(bootstrap)": _points(_bootstrapped(gap.to_numpy())),
                        "seeds": len(gap),
                    }
                )
    return pd.DataFrame(rows)


def _bootstrapped(values: np.ndarray) -> Estimate:
    if len(values) < 3:
        return Estimate(float(np.mean(values)), np.nan, np.nan, len(values), "seeds")
    found = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return Estimate(float(values.mean()), float(found.low), float(found.high), len(values), "seeds")


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
