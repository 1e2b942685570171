"""Mitigations: what each way of fine-tuning keeps of OOD accuracy, what it costs, how far it turns the weights.

Reads the sweep's table. Intervals are over seeds, paired within a seed, not corrected for the number of mitigations.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from oodlib.analysis.claims import points
from oodlib.analysis.stats import Estimate, over_seeds

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


def difference(table: pd.DataFrame, column: str, one: str, other: str) -> Estimate:
    """A column of one mitigation less that of another, paired within a seed."""
    by_seed = table.set_index(["seed", "mitigation"])[column].unstack()
    return over_seeds((by_seed[one] - by_seed[other]).dropna())


def compare_mitigations(table: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Each mitigation less plain SFT, accuracies in points; a row a mitigation. `table` as `mitigations` returns it."""
    titles = {"id": "ID", "ood": "OOD", "rl_id": "ID after RL", "rl_ood": "OOD after RL", "angle": "angle (°)"}
    rows = {}
    for name, seeds in table.groupby("mitigation", sort=False):
        rows[name] = {"seeds": len(seeds), **dict.fromkeys(titles.values(), "")}
        for column, title in titles.items():
            if name != plain and seeds[column].notna().any():
                rows[name][title] = difference(table, column, name, plain).text("+.1f", 1 if column == "angle" else 100)
    return pd.DataFrame.from_dict(rows, orient="index")


def best_mitigations(table: pd.DataFrame, plain: str) -> str:
    """In Markdown, computed: what keeps OOD accuracy, at what cost in ID accuracy, and where RL then ends highest."""
    kept = []
    for name in table["mitigation"].unique():
        if name != plain and (ood := difference(table, "ood", name, plain)).low > 0:
            kept.append(f"{name} ({points(ood)} OOD, {points(difference(table, 'id', name, plain))} ID)")
    text = (
        f"**What was seen.** OOD accuracy above {plain}'s with the whole interval (points, mitigation less {plain}): "
        f"{'; '.join(kept) or 'none'}."
    )
    if len(ranked := _ranked_after_rl(table, plain)):
        best = ranked["rl_ood"].idxmax()
        text += (
            f" After RL, among those at most {100 * ALIKE:g} points of ID accuracy below {plain} with RL, the highest "
            f"mean OOD accuracy is that of **{best}**: {100 * ranked.loc[best, 'rl_ood']:.1f} %, with "
            f"{100 * ranked.loc[best, 'rl_id']:.1f} % ID accuracy."
        )
    return text


def best_start(table: pd.DataFrame, plain: str, claimed: str) -> str:
    """Whether RL ends highest on OOD problems from the mitigation `claimed` (C10); in Markdown, computed.

    Supported: above each of the others that are ranked, with the whole interval.
    """
    others = _ranked_after_rl(table, plain).drop(index=claimed, errors="ignore")
    best = others["rl_ood"].idxmax()
    ood, id_ = (difference(table, column, claimed, best) for column in ("rl_ood", "rl_id"))
    higher = all(difference(table, "rl_ood", claimed, name).low > 0 for name in others.index)
    return (
        f"**C10, best start: {'supported' if higher else 'not shown'}.** After RL, {claimed} less {best} is "
        f"{points(ood)} points on OOD hands, {points(id_)} on ID hands. (Of the others at most {100 * ALIKE:g} points "
        f"of ID accuracy below {plain} with RL, {best} ends highest on OOD hands.)"
    )


def _ranked_after_rl(table: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Mean accuracies after RL of the mitigations that are at most `ALIKE` of ID accuracy below plain SFT's."""
    after = table.dropna(subset=["rl_ood"]).groupby("mitigation", sort=False)[["rl_id", "rl_ood"]].mean()
    return after[after["rl_id"] >= after["rl_id"].get(plain, np.nan) - ALIKE]
