"""RL or SFT from one checkpoint: what each forgets for what it learns (RL's Razor, arXiv:2509.04259).

An arm's path is its accuracies from the common start over `rl.checkpoints` to its last update. SFT's own path goes on
from there at its own rate. Paths are compared at equal ID accuracy by `mitigations.against_others`, as mitigations are.
"""

from __future__ import annotations

import pandas as pd

from oodlib.analysis.claims import listed, points
from oodlib.analysis.mitigations import BOTH, TOO_LITTLE, against_others
from oodlib.registry import BASELINES
from oodlib.tasks import Splits

ON_POLICY = ("rl", "reinforce", "rejection_sampling_fresh")  # they learn from the model's own answers as it then is
SFT = "sft"


def paths(table: pd.DataFrame, start: int, splits: Splits) -> pd.DataFrame:
    """The path of every arm from `start` and of SFT: columns mitigation (the arm), seed, step, trained, headline, and
    the names of the other splits.

    step: of SFT's, plus an arm's updates. The table: of one condition.
    """
    titles = {name: name for name in splits.names} | {splits.trained.name: "trained", splits.headline.name: "headline"}
    rows = table[(table["metric"] == "accuracy") & table["split"].isin(titles)]
    sft = rows[(rows["stage"] == "sft") & (rows["step"] >= start)]
    arms = rows[(rows["stage"] == "rl") & (rows["from_step"] == start)]
    arms = arms.assign(step=arms["step"] + start)
    begin = sft[sft["step"] == start]
    names = [SFT, *arms["arm"].unique()]
    every = pd.concat([sft.assign(arm=SFT), arms, *(begin.assign(arm=arm) for arm in names[1:])])
    wide = every.pivot_table(index=["arm", "seed", "step"], columns="split", values="value").rename(columns=titles)
    wide = wide.dropna(subset=BOTH).reindex(names, level="arm").rename_axis(index={"arm": "mitigation"})
    wide.columns.name = None
    return wide.reset_index()


def table(found: pd.DataFrame) -> pd.DataFrame:
    """To read: headline accuracy at equal trained accuracy, in points, of each on-policy arm (columns) less that of
    each arm (rows). found: as `paths` returns it."""
    rows: dict[str, dict[str, str]] = {}
    for arm in (arm for arm in ON_POLICY if arm in set(found["mitigation"])):
        gaps = against_others(found, arm)
        for other in found["mitigation"].unique():
            text = points(gaps[other]) if other in gaps else "" if other == arm and gaps else TOO_LITTLE
            rows.setdefault(called(other), {})[called(arm)] = text
    return pd.DataFrame.from_dict(rows, orient="index")


def advice(found: pd.DataFrame, splits: Splits) -> str:
    """In Markdown, computed: what RL keeps more than each other arm from one start, at equal trained accuracy.

    found: as `paths` returns it.
    """
    if found.empty or not (gaps := against_others(found, "rl")):
        return "**To go on by RL or by SFT.** Not measured, or RL learnt too little to be compared."
    parts = [f"{called(arm)} {points(gap)}" for arm, gap in gaps.items()]
    silent = [called(arm) for arm in found["mitigation"].unique() if arm not in (*gaps, "rl")]
    rest = f" Not compared, for they learn too little: {listed(silent)}." if silent else ""
    return (
        f"**To go on by RL or by SFT.** At equal {splits.trained.label} accuracy, {splits.headline.label} accuracy "
        f"after RL, less that after: {listed(parts)}.{rest}"
    )


def called(arm: str) -> str:
    """What tables and figures call an arm here."""
    return {"rl": "RL", SFT: "SFT at its own rate"}.get(arm) or BASELINES.get(arm).label


def learns_from_demonstrations(arm: str) -> bool:
    return arm == SFT or (arm != "rl" and BASELINES.get(arm).information == "more")
