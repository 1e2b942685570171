"""Mitigations: what each way of fine-tuning keeps of OOD accuracy, what it costs, how far it turns the weights (C10).

Reads the sweep's table. Intervals are over seeds, paired within a seed, not corrected for the number of mitigations.
A mitigation that learns less also forgets less, so two are compared at equal ID accuracy, the highest that both reach
at the end: each by the highest OOD accuracy on its path from checkpoint to checkpoint at which it has that much ID
accuracy. The path is made of straight lines and leaves the base out, which does not keep to the format.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from oodlib.analysis.claims import points
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.tasks import Splits

BOTH = ["trained", "headline"]


def curves(table: pd.DataFrame, names: Mapping[str, str], splits: Splits) -> pd.DataFrame:
    """Accuracy along SFT: columns mitigation, seed, step, trained, headline and the names of other splits, in the order
    of `names`.

    `names`: what each condition is called. ValueError where the table has none of them.
    """
    titles = {**dict.fromkeys(splits.names), splits.trained.name: "trained", splits.headline.name: "headline"}
    titles = {name: title or name for name, title in titles.items()}
    rows = table.assign(mitigation=table["condition"].map(dict(names))).dropna(subset="mitigation")
    rows = rows[(rows["stage"] == "sft") & (rows["metric"] == "accuracy") & rows["split"].isin(titles)]
    if rows.empty:
        raise ValueError("no rows of any mitigation: run `oodlib sweep mitigations` first")
    wide = rows.pivot_table(index=["mitigation", "seed", "step"], columns="split", values="value")
    order = [name for name in names.values() if name in set(rows["mitigation"])]
    wide = wide.rename(columns=titles).dropna(subset=BOTH).reindex(order, level="mitigation").reset_index()
    wide.columns.name = None
    return wide[["mitigation", "seed", "step", *BOTH, *(t for t in titles.values() if t in wide and t not in BOTH)]]


def chosen(along: pd.DataFrame, mitigation_of: Mapping[str, str], plain: str) -> dict[str, str]:
    """Each mitigation at the strength that keeps most: its name there, and the mitigation.

    That is the strength with the highest headline accuracy at equal trained accuracy, less plain SFT's, on average over
    seeds. along: `curves` of the seeds on which strengths are searched; mitigation_of: the mitigation of each name. One
    with a single strength has nothing to choose.
    """
    found = {}
    for mitigation in dict.fromkeys(mitigation_of.values()):
        names = [name for name, its in mitigation_of.items() if its == mitigation]
        if len(names) > 1:
            gains = {name: at_equal_accuracy(along, name, plain)["difference"].mean() for name in names}
            if not (measured := {name: gain for name, gain in gains.items() if gain == gain}):
                raise ValueError(f"no strength of {mitigation} was measured in the search")
            names = [max(measured, key=measured.__getitem__)]
        found[names[0]] = mitigation
    return found


def at_strengths(along: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The rows of these names alone, each called by its mitigation; `names` as `chosen` returns them."""
    kept = along[along["mitigation"].isin(names)]
    return kept.assign(mitigation=kept["mitigation"].map(dict(names))).reset_index(drop=True)


def mitigations(table: pd.DataFrame, names: Mapping[str, str], splits: Splits) -> pd.DataFrame:
    """Accuracy at the end of SFT on the trained and the headline split, a row a mitigation and seed.

    Columns as of `curves`, without step, and angle: by how much SFT turned the weights from the base, as the mean
    principal angle in degrees (NaN: not measured).
    """
    last = ends(curves(table, names, splits))
    turned = table[(table["stage"] == "sft") & (table["metric"] == "rotation")]
    turned = turned.assign(mitigation=turned["condition"].map(dict(names)), angle=np.degrees(turned["value"]))
    keys = ["mitigation", "seed", "step"]
    return last.merge(turned[[*keys, "angle"]], "left", keys).drop(columns="step")


def ends(along: pd.DataFrame) -> pd.DataFrame:
    """The rows of `curves` at the end of SFT, one a mitigation and seed."""
    return along[along["step"] == along.groupby(["mitigation", "seed"])["step"].transform("max")]


def at_peak(along: pd.DataFrame, name: str) -> pd.DataFrame:
    """Accuracies of each seed's checkpoint with the highest headline accuracy: columns seed, trained, headline."""
    mine = along[along["mitigation"] == name]
    return mine.loc[mine.groupby("seed")["headline"].idxmax(), ["seed", *BOTH]].reset_index(drop=True)


def reached(path: pd.DataFrame, trained: float, column: str = "headline") -> float:
    """The highest accuracy on a path (columns step, trained, and `column`) with at least this trained accuracy."""
    path = path[path["step"] > 0].sort_values("step")
    x, y = path["trained"].to_numpy(), path[column].to_numpy()
    crossings = [
        y0 + (y1 - y0) * (trained - x0) / (x1 - x0)
        for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False)
        if min(x0, x1) < trained < max(x0, x1)
    ]
    return max([*y[x >= trained], *crossings], default=float("nan"))


def at_equal_accuracy(along: pd.DataFrame, one: str, other: str, column: str = "headline") -> pd.DataFrame:
    """Two mitigations at the trained accuracy that both reach at the end: a row a seed that has both.

    Columns seed, trained (that accuracy), one, other, difference (of `column`, a split's). `along`: as `curves` has it.
    """
    paths = dict(list(along.groupby(["mitigation", "seed"])))
    rows = []
    for seed in sorted({seed for name, seed in paths if name == one} & {seed for name, seed in paths if name == other}):
        both = [paths[name, seed] for name in (one, other)]
        trained = min(path.loc[path["step"].idxmax(), "trained"] for path in both)
        mine, theirs = (reached(path, trained, column) for path in both)
        rows.append((seed, trained, mine, theirs, mine - theirs))
    return pd.DataFrame(rows, columns=["seed", "trained", "one", "other", "difference"])


def difference(table: pd.DataFrame, column: str, one: str, other: str) -> Estimate | None:
    """A column of one mitigation less that of another, paired within a seed; None where no seed has both."""
    by_seed = table.set_index(["seed", "mitigation"])[column].unstack().reindex(columns=[one, other])
    both = by_seed.dropna()
    return over_seeds(both[one] - both[other]) if len(both) else None


def compare_mitigations(table: pd.DataFrame, plain: str) -> pd.DataFrame:
    """Each mitigation less plain SFT at the end, accuracies in points; `table` as `mitigations` returns it."""
    titles = {"trained": "ID", "headline": "OOD", "angle": "angle (°)"}
    rows = {}
    for name, seeds in table.groupby("mitigation", sort=False):
        rows[name] = {"seeds": len(seeds), **dict.fromkeys(titles.values(), "")}
        for column, title in titles.items():
            if name != plain and (d := difference(table, column, name, plain)):
                rows[name][title] = d.text("+.1f", 1 if column == "angle" else 100)
    return pd.DataFrame.from_dict(rows, orient="index")


def against_others(along: pd.DataFrame, claimed: str) -> dict[str, Estimate]:
    """The headline accuracy of the mitigation `claimed` less each other's at equal trained accuracy, by the other."""
    found = {}
    for name in along["mitigation"].unique():
        rows = at_equal_accuracy(along, claimed, name)
        if name != claimed and len(rows):
            found[name] = over_seeds(rows["difference"])
    return found


def equal_accuracy_table(along: pd.DataFrame, claimed: str) -> pd.DataFrame:
    """`against_others` to read: a row a mitigation, with the mean trained accuracy at which it is compared."""
    rows = {}
    for name, d in against_others(along, claimed).items():
        level = at_equal_accuracy(along, claimed, name)["trained"].mean()
        rows[name] = (d.n, f"{level:.1%}", points(d))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["seeds", "at ID accuracy", f"OOD, {claimed} - it"])


def by_corner(along: pd.DataFrame, plain: str, splits: Splits) -> pd.DataFrame:
    """Each mitigation less plain SFT, in points: ID at the end, then every other split at equal ID accuracy."""
    columns = {"headline": splits.headline.label}
    columns |= {s.name: s.label for s in splits.others if s.name in along}
    last, rows = ends(along), {}
    for name in (name for name in along["mitigation"].unique() if name != plain):
        rows[name] = {f"{splits.trained.label} at the end": points(difference(last, "trained", name, plain))}
        for column, label in columns.items():
            equal = at_equal_accuracy(along, name, plain, column)["difference"]
            rows[name][f"{label}, at equal {splits.trained.label}"] = points(over_seeds(equal))
    return pd.DataFrame.from_dict(rows, orient="index")


def what_keeps(table: pd.DataFrame, along: pd.DataFrame, plain: str) -> str:
    """In Markdown, computed: what ends above plain SFT, at what cost, and what of it is left at equal ID accuracy."""
    kept = []
    for name in table["mitigation"].unique():
        if name == plain or not (ood := difference(table, "headline", name, plain)) or not ood.low > 0:
            continue
        paid, equal = difference(table, "trained", name, plain), at_equal_accuracy(along, name, plain)["difference"]
        kept.append(f"{name} ({points(ood)} OOD, {points(paid)} ID; {points(over_seeds(equal))} OOD at equal ID)")
    return (
        f"**What was seen.** OOD accuracy above {plain}'s at the end with the whole interval (points, mitigation less "
        f"{plain}): {'; '.join(kept) or 'none'}."
    )
