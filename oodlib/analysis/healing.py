"""When does RL heal? The sweep's analysis.

The effect of a condition at a start is OOD(RL) - OOD(best control), in accuracy on every OOD hand. The best control is
the one with the highest mean over the seeds, among those whose mean ID accuracy ends at most
2 points below RL's. Intervals are Student's t over seeds, paired within a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.analysis.claims import PAPER
from oodlib.analysis.stats import Estimate, nearer_to_peak, over_seeds
from oodlib.registry import BASELINES

TRAINED = ("sft_continued", "rejection_sampling")
CONTROLS = (*TRAINED, "averaging", "interpolation_base", "random_reward", "format_reward")
MARGIN = 0.02  # of accuracy: smaller differences are none
RULES = {  # the verdicts, in the order in which they are tried: the first that applies
    "nothing lost": f"the start is less than {100 * MARGIN:g} points of OOD accuracy below SFT's peak",
    "RL did not learn": "RL's mean return in the last tenth of its updates, less that in the first, does not lie "
    "above 0 with the whole interval, so that RL was not put to the test",
    "RL does not heal": "RL less its start: the interval does not reach above 0",
    "RL heals more": "RL less its start, and RL less every control that counts, lie above 0 with the whole interval",
    "a control heals more": "RL lies below some control that counts: one-sided paired t tests; the smallest p times "
    "their number is under 2.5 %",
    "level with a control": f"RL less the best control: the whole interval within {100 * MARGIN:g} points of 0",
    "undecided": "none of these",
}
VERDICTS = tuple(RULES)


@dataclass(frozen=True)
class Effect:
    """What RL did from one start of one condition.

    Attributes:
        effect: OOD(RL) - OOD(best control).
        best: that control.
        against: OOD(RL) - OOD(control) for every control that was run.
        behind: the controls that end more than 2 points of ID accuracy below RL, and do not count.
        gain: OOD(RL) - OOD(start).
        trained: OOD(RL) - OOD(the better of the two controls that train on right answers).
        held: ID(RL) - ID(best control).
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


def rules() -> pd.DataFrame:
    """The verdicts and when they are given; a row a verdict, in the order in which they are tried."""
    return pd.DataFrame({"the first that applies": list(RULES), "when": list(RULES.values())})


def wide(table: pd.DataFrame, split: str, metric: str = "accuracy") -> pd.DataFrame:
    """One row for each condition, start and seed; a column an arm, and `start`, the SFT checkpoint itself."""
    mine = table[(table["split"] == split) & (table["metric"] == metric)]
    keys = ["condition", "from_step", "seed"]
    arms = mine[mine["stage"] == "rl"].pivot_table(index=keys, columns="arm", values="value")
    sft = mine[mine["stage"] == "sft"].set_index(["condition", "step", "seed"])["value"]
    arms["start"] = sft.reindex(arms.index)
    arms["peak"] = sft.groupby(["condition", "seed"]).max().reindex(arms.index.droplevel("from_step")).to_numpy()
    return arms


def effects(table: pd.DataFrame, metric: str = "accuracy", seeds: list[int] | None = None) -> list[Effect]:
    """The effect of every condition and start that has RL and a control, in the table's order; of all seeds, or some."""
    if seeds is not None:
        table = table[table["seed"].isin(seeds)]
    found, held, returns = [], wide(table, "id", metric), _returns(table)
    for (condition, start), rows in wide(table, "ood", metric).groupby(level=["condition", "from_step"]):
        rows = rows.dropna(axis=1, how="all")
        controls = [c for c in CONTROLS if c in rows]
        if "rl" in rows and controls:
            rows = rows.dropna(subset=["rl", *controls])
            gained = returns.reindex(rows.index).dropna()
            found.append(_effect(condition, int(start), rows, held.loc[rows.index], gained, controls))
    order = list(table["condition"].unique())
    return sorted(found, key=lambda f: (order.index(f.condition), f.start))


def _returns(table: pd.DataFrame) -> pd.Series:
    """RL's mean return in the last tenth of the updates less that in the first, by condition, start and seed."""
    mine = table[(table["arm"] == "rl") & (table["split"] == "train")]
    keys = ["condition", "from_step", "seed"]
    first, last = (mine[mine["metric"] == f"reward_{end}"].set_index(keys)["value"] for end in ("first", "last"))
    return last - first


def _effect(
    condition: str, start: int, rows: pd.DataFrame, held: pd.DataFrame, gained: pd.Series, controls: list[str]
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
        verdict = "level with a control"
    else:
        verdict = "undecided"
    trained = max(set(TRAINED) & set(controls), key=lambda c: rows[c].mean(), default=best)
    kept = over_seeds(held["rl"] - held[best])
    return Effect(condition, start, effect, best, against, behind, gain, against[trained], kept, learnt, verdict)


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
            "condition": f.condition,
            "from step": f.start,
            "seeds": f.effect.n,
            "RL - start": points(f.gain),
            "best control": f.best,
            "does not count": ", ".join(f.behind),
            "RL - best control": points(f.effect),
            "the same on ID": points(f.held),
            "RL - best trained control": points(f.trained),
            "RL's return rose by": numbers(f.learnt) if f.learnt else "",
            "verdict": f.verdict,
        }
        for f in found
    ]
    return pd.DataFrame(rows)


def brief(found: list[Effect]) -> pd.DataFrame:
    """Of `as_table` what a page has room for, a row a condition and start."""
    table = as_table(found)
    table.index = [_place(f) for f in found]
    table["best control"] = [_control(f.best) for f in found]
    return table[["RL - start", "best control", "RL - best control", "the same on ID", "verdict"]]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """OOD / ID accuracy in percent of the start and of every arm, means over seeds; empty where an arm was not run."""
    keys = ["condition", "from_step"]
    ood, held = ((100 * wide(table, split)).groupby(level=keys).mean() for split in ("ood", "id"))
    order = [arm for arm in ("start", "rl", *CONTROLS, "interpolation_peak") if arm in ood]
    found = pd.DataFrame({arm: ood[arm].map("{:.1f}".format) + " / " + held[arm].map("{:.1f}".format) for arm in order})
    found = found.where(ood[order].notna(), "")
    found.index = [f"{condition}, from {start}" for condition, start in found.index]
    return found


def beside_the_paper(found: list[Effect]) -> pd.DataFrame:
    """The paper's rows above those of `found`: RL less its start, and less the best control that trains; points.

    LLaMA has a curve by start, so RL is set against the checkpoint from which it starts: at the start whose RL is the
    paper's, the best of all, and on average. For Qwen the paper gives no start, only its "moderate" checkpoint.
    """
    columns = ["RL - start", "RL - best trained control"]
    own = as_table(found)[columns].set_axis([_place(f) for f in found])
    rows = {f"the paper, {name}": (f"{gain:+.1f}", "not measured") for name, gain in paper_gains().items()}
    return pd.concat([pd.DataFrame.from_dict(rows, orient="index", columns=columns), own])


def paper_gains() -> dict[str, float]:
    """The paper's own comparison, OOD(RL) - OOD(the checkpoint from which it starts), in points."""
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    gains = {step: rl - sft for step, sft, rl in zip(curve["step"], curve["sft"], curve["rl_from_step"], strict=True)}
    best = curve["step"][int(np.argmax(curve["rl_from_step"]))]
    qwen = PAPER["stages"]["qwen-2.5-7b"]["ood"]
    return {
        f"LLaMA 3.2 11B, from step {best}, the best of {len(gains)} starts": gains[best],
        f"LLaMA 3.2 11B, mean of the {len(gains)} starts": np.mean(list(gains.values())),
        'Qwen 2.5 7B, less its "moderate" checkpoint': qwen["rl"] - qwen["sft_moderate"],
    }


def later_tries(table: pd.DataFrame) -> dict[tuple[str, int], tuple[Estimate, Estimate, Estimate]]:
    """RL's gain, OOD(RL) - OOD(start), by condition and start: at the first try, within all, and all less first.

    The difference is paired within a seed.
    """
    found = {}
    all_tries, first = (wide(table, "ood", metric) for metric in ("accuracy", "accuracy@1"))
    gains = pd.DataFrame({"first": first["rl"] - first["start"], "all": all_tries["rl"] - all_tries["start"]}).dropna()
    for (condition, start), rows in gains.groupby(level=["condition", "from_step"]):
        parts = (rows["first"], rows["all"], rows["all"] - rows["first"])
        found[condition, int(start)] = tuple(map(over_seeds, parts))
    return found


def answer(found: list[Effect], later: dict[tuple[str, int], tuple[Estimate, Estimate, Estimate]]) -> str:
    """A plain answer in Markdown, computed: from the effects on success within all tries, and `later_tries`."""
    idle = [f for f in found if f.verdict == "RL did not learn"]
    asked = [f for f in found if f.verdict != "nothing lost" and f not in idle]
    if not asked:
        return "No start from which RL learnt had lost OOD accuracy, so there was nothing to heal."
    count = {v: sum(f.verdict == v for f in asked) for v in VERDICTS}
    lines = [
        f"Of {len(asked)} starts that had lost OOD accuracy and from which RL learnt: "
        + ", ".join(f"**{n}** {v}" for v, n in count.items() if n)
        + ". Points of OOD accuracy, with 95 % intervals, none of them corrected for the number of starts:",
        _answers(asked, later),
    ]
    if idle:
        where = ", ".join(map(_place, idle))
        lines.append(f"Left out, for RL's return did not rise there, so that RL was not put to the test: {where}.")
    lines.append(
        f"The best control is that with the highest mean, which goes against RL, of those at most {100 * MARGIN:g} "
        "points of ID accuracy below RL."
    )
    behind = dict.fromkeys(_control(c) for f in asked for c in f.behind)
    if behind:
        lines[-1] += f" Not counted somewhere, for they end further below: {'; '.join(behind)}."
    alike = {_place(f): f.against["rejection_sampling"] for f in asked if "rejection_sampling" in f.against}
    if alike:
        lines.append(f"Rejection sampling learns from the same problems and checker. RL less it: {_signs(alike)}.")
    lines.append(
        "RL less its start, that is, less doing nothing, is the paper's comparison: "
        f"{_signs({_place(f): f.gain for f in asked})}; the mean over starts is "
        f"{100 * np.mean([f.gain.value for f in asked]):+.1f} points."
    )
    pairs = {_place(f): later[f.condition, f.start] for f in asked if (f.condition, f.start) in later}
    if pairs:
        one_try, all_tries = (100 * np.mean([p[i].value for p in pairs.values()]) for i in (0, 1))
        gaps = {place: p[2] for place, p in pairs.items()}
        lines.append(
            f"At the first try alone the mean over starts is {one_try:+.1f} points, within all tries {all_tries:+.1f}. "
            "The difference holds whatever RL did to later tries, the use of the messages included"
            + ("; it changes sign between starts" if len({e.value > 0 for e in gaps.values()}) > 1 else "")
            + f": {_signs(gaps)}."
        )
    return "\n\n".join(lines)


def _answers(asked: list[Effect], later: dict[tuple[str, int], tuple[Estimate, Estimate, Estimate]]) -> str:
    """A Markdown table, a row a condition and start: RL less this and that, in points."""
    head = (
        "condition, start",
        "RL - best control",
        "RL - rejection sampling",
        "RL - start",
        "RL - start: all tries less first",
    )
    rows = [head, ("---",) * len(head)]
    for f in asked:
        alike, tries = f.against.get("rejection_sampling"), later.get((f.condition, f.start))
        best = f"{points(f.effect)} ({_control(f.best)})"
        rows.append((_place(f), best, points(alike), points(f.gain), points(tries and tries[2])))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _signs(found: dict[str, Estimate]) -> str:
    """At which starts the whole interval lies above 0, and at which below."""
    above, below = ([p for p, e in found.items() if e.low > 0], [p for p, e in found.items() if e.high < 0])
    named = (f"{len(places)}{' (' + '; '.join(places) + ')' if places else ''}" for places in (above, below))
    return "of {}, the whole interval lies above 0 in {}, below 0 in {}".format(len(found), *named)


def _place(f: Effect) -> str:
    return f"{f.condition}, from {f.start}"


def _control(arm: str) -> str:
    return BASELINES.get(arm).label.split(": ")[-1]


def numbers(e: Estimate, digits: int = 2) -> str:
    """The value with its interval; of one seed the value alone."""
    if np.isnan(e.low):
        return f"{e.value:+.{digits}f}"
    return f"{e.value:+.{digits}f} [{e.low:+.{digits}f}, {e.high:+.{digits}f}]"


def points(e: Estimate | None) -> str:
    """Of a share: in points; "–" for None."""
    if e is None:
        return "–"
    return numbers(Estimate(100 * e.value, 100 * e.low, 100 * e.high, e.n, e.unit), 1)


def contrasts(table: pd.DataFrame, pairs: list[tuple[tuple[str, int], tuple[str, int]]]) -> pd.DataFrame:
    """What a factor changes in RL's gain, OOD(RL) - OOD(start): the difference of two conditions, paired within a seed.

    A row a pair of (condition, start), for the first try and for all tries: points with the t interval, and with a
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
                        "RL's gain differs by (t)": points(over_seeds(gap)),
                        "(bootstrap)": points(_bootstrapped(gap.to_numpy())),
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

    One row for each condition, start, arm and seed: `angle`, mean principal angle (radians) between start and end of the
    arm; `towards_peak`, how much smaller the angle to the OOD peak's vectors became (negative: larger).
    """
    mine = table[(table["stage"] == "rotation") & table["metric"].isin(["mean_angle_left", "mean_angle_right"])]
    place = ["condition", "arm", "from_step", "seed"]
    angles = mine.groupby(place)["value"].mean().reset_index()
    own = angles[(angles["arm"] != "sft") & ~angles["arm"].str.endswith(" to peak")].rename(columns={"value": "angle"})
    nearer = nearer_to_peak(angles).rename(columns={"value": "towards_peak"})
    return own.merge(nearer, how="left", on=place)


def turned_back(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """How much nearer (+) to the OOD peak's singular vectors each arm came, in degrees; a column a start."""
    mine = turned(table).query("condition == @condition").dropna(subset="towards_peak")
    mine = mine.assign(nearer=np.degrees(mine["towards_peak"]), start=mine["from_step"].map("from step {} (°)".format))
    found = mine.groupby(["arm", "start"], sort=False)["nearer"].agg(lambda x: numbers(over_seeds(x))).unstack("start")
    return (
        found.reindex([arm for arm in ("rl", *CONTROLS) if arm in found.index])
        .rename(index=lambda arm: "after RL" if arm == "rl" else _control(arm))
        .rename_axis(None)
    )


def skewness_and_gain(table: pd.DataFrame, found: list[Effect]) -> str:
    """In Markdown: whether RL gained more where its advantages were less skewed, over the starts where it learnt."""
    mine = table[(table["split"] == "rollouts") & (table["arm"] == "rl") & (table["metric"] == "advantage_skewness")]
    skewness = mine.groupby(["condition", "from_step"])["value"].mean().abs()
    learnt = [f for f in found if f.verdict != "RL did not learn" and (f.condition, f.start) in skewness.index]
    if len(learnt) < 3:
        return "**What was seen.** RL learnt from too few starts to tell."
    test = stats.spearmanr([skewness[f.condition, f.start] for f in learnt], [f.gain.value for f in learnt])
    return (
        f"**What was seen.** Over the {len(learnt)} starts from which RL learnt, its gain and the size of the skewness "
        f"have a rank correlation of {test.statistic:+.2f} (Spearman; p = {test.pvalue:.2f}). C6 as a mechanism asks "
        "for one near -1; so few starts can hardly tell."
    )
