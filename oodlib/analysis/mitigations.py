"""Remedies: what each way of fine-tuning keeps of OOD accuracy, what it costs, how far it turns the weights.

Reads the sweep's tables; its sentences are computed from them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from oodlib.analysis.healing import MARGIN, numbers, points
from oodlib.analysis.stats import over_seeds, rank_correlation

ALIKE = 0.04  # of ID accuracy after RL: remedies further below plain SFT than this are not ranked


def remedies(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """ID and OOD accuracy at the end of SFT, and after RL from there; a row a remedy and seed.

    `names`: what each condition is called. Columns remedy, seed, id, ood, rl_id, rl_ood (NaN where RL was not run), and
    angle: by how much SFT turned the leading directions from the base, the mean principal angle in degrees (NaN where
    it was not measured). ValueError where the table has no row of any remedy.
    """
    frames = []
    names = {condition: name for condition, name in names.items() if condition in set(table["condition"])}
    if not names:
        raise ValueError("no rows of any remedy: run `oodlib sweep remedies` first")
    for condition, name in names.items():
        mine = table[(table["condition"] == condition) & (table["metric"] == "accuracy")]
        sft = mine[mine["stage"] == "sft"]
        end = sft[sft["step"] == sft["step"].max()].pivot_table(index="seed", columns="split", values="value")
        rl = mine[(mine["arm"] == "rl") & (mine["from_step"] == sft["step"].max())]
        after = rl.pivot_table(index="seed", columns="split", values="value").reindex(end.index, columns=["id", "ood"])
        angle = _angles(table[table["condition"] == condition], sft["step"].max()).reindex(end.index)
        more = {"remedy": name, "rl_id": after["id"], "rl_ood": after["ood"], "angle": angle}
        frames.append(end[["id", "ood"]].assign(**more).reset_index())
    return pd.concat(frames, ignore_index=True)[["remedy", "seed", "id", "ood", "rl_id", "rl_ood", "angle"]]


def _angles(mine: pd.DataFrame, end: int) -> pd.Series:
    """Of one condition, by seed: the mean principal angle (degrees) between the base and the end of SFT."""
    sft = mine[(mine["stage"] == "rotation") & (mine["arm"] == "sft")]
    sft = sft[(sft["from_step"] == 0) & (sft["step"] == end)]
    return np.degrees(sft[sft["metric"].isin(["mean_angle_left", "mean_angle_right"])].groupby("seed")["value"].mean())


def at_peak(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """ID and OOD accuracy of each seed's checkpoint with the highest OOD accuracy: columns seed, id, ood."""
    sft = table[(table["condition"] == condition) & (table["stage"] == "sft") & (table["metric"] == "accuracy")]
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


def _mean(values: pd.Series, least: float = -np.inf) -> str:
    """Mean and, of several seeds, 95 % interval, cut at the least value that there can be."""
    found = over_seeds(values)
    return f"{found.value:.1f}" + (f" [{max(found.low, least):.1f}, {found.high:.1f}]" if len(values) > 1 else "")


def best_remedies(found: pd.DataFrame, plain: str) -> str:
    """In Markdown, computed: what keeps OOD accuracy at no cost in ID accuracy, and what ends highest after RL.

    After RL those are ranked whose mean ID accuracy is at most 4 points below plain SFT's after RL, and, for
    comparison, at most 2; what ends higher on OOD hands than the best of them is named as a trade-off.
    """
    base = found[found["remedy"] == plain].set_index("seed")
    kept, free = [], []
    for name, mine in found[found["remedy"] != plain].groupby("remedy", sort=False):
        mine = mine.set_index("seed")
        held, ood = over_seeds((mine["id"] - base["id"]).dropna()), over_seeds((mine["ood"] - base["ood"]).dropna())
        if ood.low > 0:
            kept.append(f"{name} ({points(ood)} OOD, {points(held)} ID)")
            free += [name] if held.high >= 0 else []
    lines = [
        f"**What was seen.** OOD accuracy above {plain}'s with the whole interval (points, remedy less {plain}): "
        + ("; ".join(kept) or "none")
        + "."
    ]
    lines.append("Of these, ID accuracy is not shown to be lower for: " + (", ".join(free) or "none") + ".")
    after = _after_rl(found)
    if plain in after.index:
        near, close = (_near(after, plain, margin) for margin in (ALIKE, MARGIN))
        best, strict = near["rl_ood"].idxmax(), close["rl_ood"].idxmax()
        other = (
            f"; within {100 * MARGIN:g} points it is **{strict}** ({_both(after, strict)})" if strict != best else ""
        )
        lines.append(
            f"After RL, among those at most {100 * ALIKE:g} points of ID accuracy below {plain} with RL "
            f"({_both(after, plain)}), the highest mean OOD accuracy is that of **{best}** "
            f"({_both(after, best)}){other}."
        )
        dearer = after[(after["rl_ood"] > after.loc[best, "rl_ood"]) & ~after.index.isin(near.index)]
        if len(dearer):
            each = "; ".join(f"{name} ({_both(after, name)})" for name in dearer.index)
            lines.append(f"More OOD accuracy is there only for ID accuracy, a trade-off: {each}.")
    return "\n\n".join(lines)


def best_start(found: pd.DataFrame, plain: str, claimed: str) -> str:
    """Whether RL ends highest on OOD hands from the remedy `claimed` (C10); in Markdown, computed.

    Its rivals are the remedies whose mean ID accuracy after RL is at most 4 points below plain SFT's after RL. Shown:
    above each of them with the whole interval, paired within a seed.
    """
    after, by_seed = _after_rl(found), found.set_index(["seed", "remedy"])[["rl_id", "rl_ood"]].unstack()
    rivals = _near(after, plain, ALIKE).drop(index=claimed, errors="ignore")
    gaps = {name: over_seeds((by_seed["rl_ood", claimed] - by_seed["rl_ood", name]).dropna()) for name in rivals.index}
    best = rivals["rl_ood"].idxmax()
    held = over_seeds((by_seed["rl_id", claimed] - by_seed["rl_id", best]).dropna())
    verdict = "supported" if all(e.low > 0 for e in gaps.values()) else "not shown"
    return (
        f"**C10, best start: {verdict}.** After RL, {claimed} has {_both(after, claimed)}, {best} "
        f"{_both(after, best)}; the difference is {points(gaps[best])} points on OOD hands, {points(held)} on ID "
        f"hands. (Of the others at most {100 * ALIKE:g} points of ID accuracy below {plain} with RL, {best} ends "
        "highest on OOD hands. Intervals are paired within a seed, not corrected for the choice.)"
    )


def _after_rl(found: pd.DataFrame) -> pd.DataFrame:
    return found.dropna(subset=["rl_ood"]).groupby("remedy", sort=False)[["rl_id", "rl_ood"]].mean()


def _near(after: pd.DataFrame, plain: str, margin: float) -> pd.DataFrame:
    return after[after["rl_id"] >= after.loc[plain, "rl_id"] - margin]


def _both(after: pd.DataFrame, name: str) -> str:
    return f"OOD {100 * after.loc[name, 'rl_ood']:.1f} %, ID {100 * after.loc[name, 'rl_id']:.1f} %"


def angles(found: pd.DataFrame, plain: str) -> pd.DataFrame:
    """By how much each remedy turned the leading directions from the base, beside its OOD accuracy; least first.

    Degrees and percent, means over seeds with 95 % intervals; a row a remedy that was measured.
    """
    by_seed = found.set_index(["seed", "remedy"])["angle"].unstack().dropna(axis=1, how="all")
    rows = {}
    for name in by_seed.mean().sort_values().index:
        gap = (by_seed[name] - by_seed[plain]).dropna()
        rows[name] = {
            "turned from the base (°)": _mean(by_seed[name].dropna(), least=0.0),
            f"less {plain} (°)": "" if name == plain else numbers(over_seeds(gap), 1),
            "OOD at the end (%)": _mean(100 * found.loc[found["remedy"] == name, "ood"]),
        }
    return pd.DataFrame(rows).T


def turning_and_forgetting(found: pd.DataFrame, plain: str, adapter: str) -> str:
    """Whether less turning goes with less forgetting, in Markdown, computed.

    `adapter`: the remedy that trains an adapter, and is set against the others, which train all parameters.
    """
    whole = found[found["remedy"] != adapter].dropna(subset=["angle"])
    means = whole.groupby("remedy")[["angle", "ood"]].mean()
    rank, within = means["angle"].corr(means["ood"], method="spearman"), rank_correlation(whole, "angle", "ood")
    said = (
        "less turning goes with less forgetting"
        if within.high < 0
        else "less turning is not shown to go with less forgetting"
    )
    by_seed = found.set_index(["seed", "remedy"])[["angle", "ood"]].unstack()
    angle, ood = (over_seeds((by_seed[c, adapter] - by_seed[c, plain]).dropna()) for c in ("angle", "ood"))
    rule = "breaks the rule" if angle.low > 0 and ood.low > 0 else "does not break the rule"
    return (
        f"**What was seen.** Among the {len(means)} ways that train all parameters, {said}: the rank correlation of "
        f"angle and OOD accuracy is {rank:+.2f} over their means, {numbers(within)} within a seed. {adapter} {rule}: "
        f"it turns by {by_seed['angle', adapter].mean():.1f}° (less {plain}: {angle.value:+.1f}° [{angle.low:+.1f}, "
        f"{angle.high:+.1f}]), and its OOD accuracy is {100 * by_seed['ood', adapter].mean():.1f} % (less {plain}: "
        f"{points(ood)} points). It also leaves embedding and unembedding as they are, and has another learning rate, "
        "so which difference matters is open."
    )


def step_times(times: pd.DataFrame, names: dict[str, str]) -> tuple[pd.DataFrame, str]:
    """Seconds a training step, the rows named as in the figures, and what they show in Markdown.

    `times`: the table of tests/benchmarks/remedies.py; `names`: what each `sft_remedy` is called, "none" plain SFT. A
    difference no larger than the spread of plain SFT's own turns, (highest - lowest) / median, is none.
    """
    mine = times.set_index("remedy").rename(index=names).rename_axis(None)
    plain, ratio = mine.loc[names["none"]], mine["times plain SFT"].drop(names["none"])
    spread = (plain["highest"] - plain["lowest"]) / plain["seconds a step"]
    alike = [f"{name} ({x:.2f} times)" for name, x in ratio.items() if abs(x - 1) <= spread]
    text = (
        f"The turns of {names['none']} itself lie up to {spread:.0%} apart, so that smaller differences are within the "
        f"spread and show neither a saving nor a cost: {', '.join(alike) or 'none'}."
    )
    return mine, text


def compare_remedies(found: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Each remedy less plain SFT, paired within a seed, in points with 95 % intervals over seeds; a row a remedy."""
    base = found[found["remedy"] == plain].set_index("seed")
    rows = []
    for name, mine in found.groupby("remedy", sort=False):
        mine = mine.set_index("seed")
        row = {"remedy": name, "seeds": len(mine)}
        for column, title in (("id", "ID"), ("ood", "OOD"), ("rl_id", "ID after RL"), ("rl_ood", "OOD after RL")):
            gap = (mine[column] - base[column]).dropna()
            row[title] = "" if gap.empty or name == plain else points(over_seeds(gap))
        rows.append(row)
    return pd.DataFrame(rows)
