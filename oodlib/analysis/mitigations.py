"""Mitigations: what each way of fine-tuning keeps of OOD accuracy, what it costs, how far it turns the weights.

Reads the sweep's table. Intervals are over seeds, paired within a seed, not corrected for the number of mitigations.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from oodlib.analysis.claims import points
from oodlib.analysis.stats import Estimate, over_seeds, rank_correlation

ALIKE = 0.04  # of ID accuracy after RL: mitigations further below plain SFT than this are not ranked


def mitigations(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """ID and OOD accuracy at the end of SFT, and after RL from there; a row a mitigation and seed.

    `names`: what each condition is called. Columns mitigation, seed, id, ood, rl_id, rl_ood (NaN where RL was not run),
    and angle: by how much SFT turned the leading directions from the base, the mean principal angle in degrees (NaN
    where it was not measured). ValueError where the table has none of them.
    """
    rows = table.assign(mitigation=table["condition"].map(names)).dropna(subset="mitigation")
    if rows.empty:
        raise ValueError("no rows of any mitigation: run `oodlib sweep mitigations` first")
    rows["end"] = rows["mitigation"].map(rows[rows["stage"] == "sft"].groupby("mitigation")["step"].max())
    accuracy, keys = rows[rows["metric"] == "accuracy"], ["mitigation", "seed"]
    before, after = (
        accuracy.query(of).pivot_table(index=keys, columns="split", values="value").reindex(columns=["id", "ood"])
        for of in ("stage == 'sft' and step == end", "arm == 'rl' and from_step == end")
    )
    turned = rows.query("stage == 'rotation' and arm == 'sft' and from_step == 0 and step == end")
    turned = turned[turned["metric"].isin(["mean_angle_left", "mean_angle_right"])]
    angle = np.degrees(turned.groupby(keys)["value"].mean()).rename("angle")
    both = before.join(after.add_prefix("rl_")).join(angle)
    return both.reindex(list(names.values()), level="mitigation").reset_index()


def at_peak(table: pd.DataFrame, condition: str) -> pd.DataFrame:
    """ID and OOD accuracy of each seed's checkpoint with the highest OOD accuracy: columns seed, id, ood."""
    sft = table[(table["condition"] == condition) & (table["stage"] == "sft") & (table["metric"] == "accuracy")]
    both = sft.pivot_table(index=["seed", "step"], columns="split", values="value")
    return both.loc[both.groupby("seed")["ood"].idxmax()].reset_index()[["seed", "id", "ood"]]


def _gap(table: pd.DataFrame, column: str, one: str, other: str) -> Estimate:
    by_seed = table.set_index(["seed", "mitigation"])[column].unstack()
    return over_seeds((by_seed[one] - by_seed[other]).dropna())


def compare_mitigations(table: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Each mitigation less plain SFT, in points; a row a mitigation. `table` as `mitigations` returns it."""
    titles = {"id": "ID", "ood": "OOD", "rl_id": "ID after RL", "rl_ood": "OOD after RL"}
    rows = {}
    for name, seeds in table.groupby("mitigation", sort=False):
        there = {column for column in titles if seeds[column].notna().any() and name != plain}
        texts = {t: points(_gap(table, c, name, plain)) if c in there else "" for c, t in titles.items()}
        rows[name] = {"seeds": len(seeds), **texts}
    return pd.DataFrame.from_dict(rows, orient="index")


def best_mitigations(table: pd.DataFrame, plain: str) -> str:
    """In Markdown, computed: what keeps OOD accuracy, at no cost in ID accuracy or at some, and what RL makes of it."""
    others = [name for name in table["mitigation"].unique() if name != plain]
    gaps = {name: (_gap(table, "ood", name, plain), _gap(table, "id", name, plain)) for name in others}
    kept = {name: (ood, held) for name, (ood, held) in gaps.items() if ood.low > 0}
    listed = "; ".join(f"{name} ({points(ood)} OOD, {points(held)} ID)" for name, (ood, held) in kept.items())
    free = ", ".join(name for name, (_, held) in kept.items() if held.high >= 0)
    lines = [
        f"**What was seen.** OOD accuracy above {plain}'s with the whole interval (points, mitigation less {plain}): "
        f"{listed or 'none'}. Of these, ID accuracy is not shown to be lower for: {free or 'none'}."
    ]
    after, near = _after_rl(table, plain)
    if len(near):
        best = near["rl_ood"].idxmax()
        lines.append(
            f"After RL, among those at most {100 * ALIKE:g} points of ID accuracy below {plain} with RL "
            f"({_both(after, plain)}), the highest mean OOD accuracy is that of **{best}** ({_both(after, best)})."
        )
        dearer = after[(after["rl_ood"] > after.loc[best, "rl_ood"]) & ~after.index.isin(near.index)]
        if each := "; ".join(f"{name} ({_both(after, name)})" for name in dearer.index):
            lines.append(f"More OOD accuracy is there only for ID accuracy, a trade-off: {each}.")
    return "\n\n".join(lines)


def best_start(table: pd.DataFrame, plain: str, claimed: str) -> str:
    """Whether RL ends highest on OOD problems from the mitigation `claimed` (C10); in Markdown, computed.

    Supported: above each of the others that are ranked, with the whole interval.
    """
    after, near = _after_rl(table, plain)
    gaps = {name: _gap(table, "rl_ood", claimed, name) for name in near.index if name != claimed}
    best = near.loc[list(gaps), "rl_ood"].idxmax()
    verdict = "supported" if all(gap.low > 0 for gap in gaps.values()) else "not shown"
    return (
        f"**C10, best start: {verdict}.** After RL, {claimed} has {_both(after, claimed)}, {best} "
        f"{_both(after, best)}; the difference is {points(gaps[best])} points on OOD hands, "
        f"{points(_gap(table, 'rl_id', claimed, best))} on ID hands. (Of the others at most {100 * ALIKE:g} points of "
        f"ID accuracy below {plain} with RL, {best} ends highest on OOD hands.)"
    )


def _after_rl(table: pd.DataFrame, plain: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean accuracies after RL by mitigation; and of those alone that are ranked, at most `ALIKE` below plain SFT."""
    after = table.dropna(subset=["rl_ood"]).groupby("mitigation", sort=False)[["rl_id", "rl_ood"]].mean()
    return after, after[after["rl_id"] >= after["rl_id"].get(plain, np.nan) - ALIKE]


def _both(after: pd.DataFrame, name: str) -> str:
    return f"OOD {100 * after.loc[name, 'rl_ood']:.1f} %, ID {100 * after.loc[name, 'rl_id']:.1f} %"


def angles(table: pd.DataFrame, plain: str) -> pd.DataFrame:
    """How far each mitigation turned the leading directions from the base (degrees), beside its OOD accuracy (percent).

    A row a mitigation that was measured, means over seeds with 95 % intervals; the least turned first.
    """
    rows = {}
    for name in table.dropna(subset="angle").groupby("mitigation")["angle"].mean().sort_values().index:
        seeds = table[table["mitigation"] == name]
        turned = over_seeds(seeds["angle"].dropna())
        rows[name] = {
            "turned from the base (°)": replace(turned, low=np.maximum(turned.low, 0)).text(".1f"),
            f"less {plain} (°)": "" if name == plain else _gap(table, "angle", name, plain).text("+.1f"),
            "OOD at the end (%)": over_seeds(seeds["ood"]).text(".1f", 100),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def turning_and_forgetting(table: pd.DataFrame, plain: str, adapter: str) -> str:
    """Whether less turning goes with less forgetting, in Markdown, computed; `adapter` is set against all others."""
    whole = table[table["mitigation"] != adapter].dropna(subset=["angle"])
    means = whole.groupby("mitigation")[["angle", "ood"]].mean()
    rank, within = means["angle"].corr(means["ood"], method="spearman"), rank_correlation(whole, "angle", "ood")
    shown = "goes" if within.high < 0 else "is not shown to go"
    angle, ood = (_gap(table, column, adapter, plain) for column in ("angle", "ood"))
    breaks = "breaks the rule" if angle.low > 0 and ood.low > 0 else "does not break the rule"
    mean = table[table["mitigation"] == adapter][["angle", "ood"]].mean()
    return (
        f"**What was seen.** Among the {len(means)} ways that train all parameters, less turning {shown} with less "
        f"forgetting: the rank correlation of angle and OOD accuracy is {rank:+.2f} over their means, {within.text()} "
        f"within a seed. {adapter} {breaks}: it turns by {mean['angle']:.1f}° (less {plain}: {angle.text('+.1f')}°), "
        f"and its OOD accuracy is {100 * mean['ood']:.1f} % (less {plain}: {points(ood)} points). It also leaves "
        "embedding and unembedding as they are, and has another learning rate, so which difference matters is open."
    )


def step_times(times: pd.DataFrame, names: dict[str, str]) -> tuple[pd.DataFrame, str]:
    """The benchmark's seconds a training step, rows named by `names`, and what they show in Markdown.

    `names`: what each `sft.mitigation` is called, "none" plain SFT. A difference no larger than the spread of plain
    SFT's own turns, (highest - lowest) / median, is none.
    """
    named = times.set_index(times.columns[0]).rename(index=names).rename_axis(None)
    plain, ratio = named.loc[names["none"]], named["times plain SFT"].drop(names["none"])
    spread = (plain["highest"] - plain["lowest"]) / plain["seconds a step"]
    alike = ", ".join(f"{name} ({x:.2f} times)" for name, x in ratio.items() if abs(x - 1) <= spread)
    return named, (
        f"The turns of {names['none']} itself lie up to {spread:.0%} apart, so that smaller differences are within the "
        f"spread and show neither a saving nor a cost: {alike or 'none'}."
    )
