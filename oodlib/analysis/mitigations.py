"""Mitigations: what each way of fine-tuning keeps of OOD accuracy, by corner, and what it costs (C10).

Reads a sweep's table. Intervals are over seeds, paired within a seed, not corrected for the number of mitigations.
A mitigation that learns less also forgets less, so two are compared at equal ID accuracy, the highest that both reach
at the end: each by the highest OOD accuracy on its path from checkpoint to checkpoint at which it has that much ID
accuracy. The path is made of straight lines and leaves the base out, which does not keep to the format.

One that ends with no more ID accuracy than plain SFT had at its OOD peak is not compared (`learners`). Before the peak
nothing was forgotten yet: there all would be level, whatever they do.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from oodlib.analysis.claims import listed, points
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.tasks import Splits

BOTH = ["trained", "headline"]
TOO_LITTLE = "learns too little"  # to be compared


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

    That is, of the strengths among `learners`, the one with the highest headline accuracy at equal trained accuracy,
    less plain SFT's, on average over seeds; without any, the one with the highest trained accuracy at the end. along:
    `curves` of the seeds on which strengths are searched; mitigation_of: the mitigation of each name. One with a single
    strength has nothing to choose.
    """
    learn = learners(along) if len(along) else []
    last = ends(along).groupby("mitigation")["trained"].mean() if len(along) else {}
    found = {}
    for mitigation in dict.fromkeys(mitigation_of.values()):
        names = [name for name, its in mitigation_of.items() if its == mitigation]
        if len(names) > 1:
            if not (measured := [name for name in names if name in last]):
                raise ValueError(f"no strength of {mitigation} was measured in the search")
            gains = {n: at_equal_accuracy(along, n, plain)["difference"].mean() for n in measured if n in learn}
            names = [max(gains, key=gains.__getitem__) if gains else max(measured, key=lambda name: last[name])]
        found[names[0]] = mitigation
    return found


def at_strengths(along: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The rows of these names alone, each called by its mitigation; `names` as `chosen` returns them."""
    kept = along[along["mitigation"].isin(names)]
    return kept.assign(mitigation=kept["mitigation"].map(dict(names))).reset_index(drop=True)


def ends(along: pd.DataFrame) -> pd.DataFrame:
    """The rows of `curves` at the end of SFT, one a mitigation and seed."""
    return along[along["step"] == along.groupby(["mitigation", "seed"])["step"].transform("max")]


def learners(along: pd.DataFrame) -> list[str]:
    """Those of `along` that end, in every seed, with more trained accuracy than the first of them (plain SFT) has at
    its headline peak."""
    along = along.reset_index(drop=True)
    first = along[(along["mitigation"] == along.at[0, "mitigation"]) & (along["step"] > 0)]
    peak = first.loc[first.groupby("seed")["headline"].idxmax()].set_index("seed")["trained"]
    last = ends(along)
    more = last["trained"] > last["seed"].map(peak).fillna(0)
    return [name for name, passed in more.groupby(last["mitigation"], sort=False) if passed.all()]


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


def against_others(along: pd.DataFrame, claimed: str) -> dict[str, Estimate]:
    """The headline accuracy of the mitigation `claimed` less each other's at equal trained accuracy, by the other; of
    `learners` alone."""
    found: dict[str, Estimate] = {}
    if claimed not in (names := learners(along)):
        return found
    for name in names:
        rows = at_equal_accuracy(along, claimed, name)
        if name != claimed and len(rows):
            found[name] = over_seeds(rows["difference"])
    return found


def by_corner(along: pd.DataFrame, plain: str, splits: Splits) -> pd.DataFrame:
    """What each mitigation has more than plain SFT: columns mitigation, split, gain (an Estimate), the one that keeps
    most of the headline first.

    On the trained split at the end of SFT, on every other at equal trained accuracy; there only of `learners`.
    """
    columns = {splits.headline.name: "headline"} | {s.name: s.name for s in splits.others if s.name in along}
    last, rows, learn = ends(along), [], learners(along)
    for name in (name for name in along["mitigation"].unique() if name != plain):
        rows.append((name, splits.trained.name, difference(last, "trained", name, plain)))
        for split, column in columns.items() if name in learn else ():
            equal = at_equal_accuracy(along, name, plain, column)["difference"].dropna()
            rows.append((name, split, over_seeds(equal) if len(equal) else None))
    found = pd.DataFrame(rows, columns=["mitigation", "split", "gain"]).dropna(subset="gain")
    kept = {r.mitigation: -r.gain.value for r in found[found["split"] == splits.headline.name].itertuples()}
    return found.sort_values("mitigation", key=lambda names: names.map(kept), kind="stable", ignore_index=True)


def corner_table(along: pd.DataFrame, plain: str, splits: Splits, times: Mapping[str, float]) -> pd.DataFrame:
    """`by_corner` to read, in points, with the headline at the end too, where nothing is chosen by it; `times`: what a
    step takes, in steps of plain SFT."""
    found, last = by_corner(along, plain, splits), ends(along)
    text = found.assign(gain=[points(gain) for gain in found["gain"]])
    table = text.pivot(index="mitigation", columns="split", values="gain")
    table = table.loc[found["mitigation"].unique(), found["split"].unique()].rename_axis(index=None, columns=None)
    table = table.fillna(TOO_LITTLE)
    at = {splits.trained.name: "at the end"}
    table.columns = [f"{splits[name].label}, {at.get(name, 'equal ID')}" for name in table]
    late = [difference(last, "headline", name, plain) for name in table.index]
    table.insert(1, f"{splits.headline.label}, at the end", [points(gap) if gap else "" for gap in late])
    known = [f"{times[name]:.1f}" if name in times else "not measured" for name in table.index]
    return table.assign(**{"time of a step": known})


def formed(table: pd.DataFrame, names: Mapping[str, str], splits: Splits) -> pd.DataFrame:
    """Format or knowledge? Of each mitigation at the end of SFT, in percent, means over seeds: the answers that hold no
    formula of the asked form, and how many of the others are right.

    table: a sweep's; names: what conditions are called. Index: mitigation; columns: (split, "no formula" or "right").
    """
    rows = table.assign(mitigation=table["condition"].map(dict(names))).dropna(subset="mitigation")
    rows = rows[(rows["stage"] == "sft") & rows["split"].isin(splits.names)]
    rows = rows[rows["step"] == rows.groupby(["mitigation", "seed"])["step"].transform("max")]
    wide = rows.pivot_table(index=["mitigation", "split", "seed"], columns="metric", values="value")
    told = wide[["accuracy", "wrong_value", "wrong_numbers"]].sum(axis=1)
    both = pd.DataFrame({"no formula": (1 - told).clip(lower=0), "right": wide["accuracy"] / told.where(told > 0)})
    means = 100 * both.groupby(level=["mitigation", "split"]).mean().unstack("split").swaplevel(axis=1)
    order = [(split, column) for split in splits.names for column in both]
    found = means.reindex(index=[n for n in names.values() if n in means.index], columns=order)
    found.columns = pd.MultiIndex.from_tuples([(splits[split].label, column) for split, column in order])
    return found.rename_axis(index=None)


def advice(along: pd.DataFrame, plain: str, splits: Splits, times: Mapping[str, float]) -> str:
    """In Markdown, computed: which mitigation keeps most at equal trained accuracy, and what is not shown to keep less.

    Arguments as of `by_corner` and `corner_table`.
    """
    found = by_corner(along, plain, splits)
    gains = found[found["split"] == splits.headline.name].set_index("mitigation")["gain"]
    learnt = found[found["split"] == splits.trained.name].set_index("mitigation")["gain"]
    better = [name for name, gain in gains.items() if gain.low > 0]
    start = f"**To forget less.** At {plain}'s {splits.trained.label} accuracy, or their own where that is lower,"
    if not better:
        return f"{start} none of {len(gains)} mitigations is shown to keep more {splits.headline.label} accuracy."
    most = better[0]
    level = [name for name, gap in against_others(along, most).items() if name in better and not gap.low > 0]
    below = [name for name, gain in gains.items() if gain.high < 0]
    cost = f"{times[most]:.1f} times the time a step" if most in times else "a time that was not measured"
    silent = [name for name in found["mitigation"].unique() if name not in gains.index]
    corners = []
    for split in splits.others:
        of = found[found["split"] == split.name].set_index("mitigation")["gain"]
        if len(of := of[[gain.low > 0 for gain in of]]):
            name = max(of.index, key=lambda mitigation: of[mitigation].value)
            corners.append(f"{split.label} {name} ({points(of[name])})")
    return (
        f"{start} {len(better)} of {len(gains)} mitigations are shown to keep more {splits.headline.label} accuracy "
        f"than {plain} does. The most is kept by **{most}**: {points(gains[most])} points more. At its end it has "
        f"{points(learnt[most])} points of {splits.trained.label} accuracy more, and it takes {cost}. "
        f"Not shown to keep less than it: {listed(level) if level else 'none'}. "
        f"Shown to keep less than {plain}: {listed(below) if below else 'none'}. "
        f"Of the other splits, most is kept by: {listed(corners) if corners else 'none is shown to keep any more'}."
        + (f" Not compared, for they learn too little: {listed(silent)}." if silent else "")
    )
