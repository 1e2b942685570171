"""Which checkpoint to keep, when there is no OOD test: rules that need what a training has anyway, and their regret.

A path is the checkpoints of one training, a row each in the order of steps, with the columns that are known: step,
id_loss, id_accuracy, kl_from_base, angle, effective_rank. A rule chooses a row, or none where a column is missing. Its
regret is the OOD accuracy at the peak less that of its choice: 0 is perfect, and only an oracle knows the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.tasks import Splits

EARLY = 0.1  # the fixed share of the steps: where the paper's LLaMA peaks, at step 140 of 1,600
KNOWN = {  # of a run's or a sweep's table: metric -> the column of a path, on the trained split or of the weights
    "loss": "id_loss",
    "accuracy": "id_accuracy",
    "kl_from_base": "kl_from_base",
    "rotation": "angle",
}


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        needs: the columns that it reads, beside the step.
        choose: of a path without the base and with those columns, the number of the row to keep.
    """

    label: str
    needs: tuple[str, ...]
    choose: Callable[[pd.DataFrame], int]


def first_minimum(values: np.ndarray) -> int:
    """The first place after which the values rise; the last if they never do."""
    rises = np.flatnonzero(np.diff(values) > 0)
    return int(rises[0]) if len(rises) else len(values) - 1


def elbow(steps: np.ndarray, values: np.ndarray) -> int:
    """The place where the slope drops most, from before it to after it; both curves start at 0. Of one value, that."""
    x, y = np.concatenate([[0], steps]), np.concatenate([[0], values])
    slopes = np.diff(y) / np.diff(x)
    return int(np.argmax(slopes[:-1] - slopes[1:])) if len(slopes) > 1 else 0


RULES = (
    Rule("last", (), lambda path: len(path) - 1),
    Rule("lowest ID loss", ("id_loss",), lambda path: int(path["id_loss"].to_numpy().argmin())),
    Rule("first minimum of the ID loss", ("id_loss",), lambda path: first_minimum(path["id_loss"].to_numpy())),
    Rule("highest ID accuracy", ("id_accuracy",), lambda path: int(path["id_accuracy"].to_numpy().argmax())),
    Rule(
        f"{EARLY:.0%} of the steps",
        (),
        lambda path: int((path["step"] - EARLY * path["step"].max()).abs().to_numpy().argmin()),
    ),
    Rule(
        "elbow of the KL from the base",
        ("kl_from_base",),
        lambda path: elbow(path["step"].to_numpy(), path["kl_from_base"].to_numpy()),
    ),
    Rule("elbow of the angle", ("angle",), lambda path: elbow(path["step"].to_numpy(), path["angle"].to_numpy())),
    Rule(
        "highest effective rank",
        ("effective_rank",),
        lambda path: int(path["effective_rank"].to_numpy().argmax()),
    ),
)


def choices(path: pd.DataFrame) -> dict[str, int]:
    """The step that each rule keeps, by its label; of the rules whose columns the path has. ValueError without any
    checkpoint but the base."""
    path = path[path["step"] > 0].sort_values("step")
    if path.empty:
        raise ValueError("there is no checkpoint to choose, but for the base")
    known = {name for name in path.columns if path[name].notna().all()}
    return {rule.label: int(path["step"].iloc[rule.choose(path)]) for rule in RULES if known.issuperset(rule.needs)}


def paths(table: pd.DataFrame, splits: Splits) -> dict[tuple[str, int], pd.DataFrame]:
    """The SFT paths of a table by condition ("" in a run's) and seed, with ood, the headline's accuracy."""
    if "condition" not in table:
        table = table.assign(condition="")
    sft = table[(table["arm"] == "sft") & table["stage"].isin(("sft", "drift"))]
    keys = ["condition", "seed", "step"]
    own = sft[sft["split"].isin((splits.trained.name, "weights")) & sft["metric"].isin(KNOWN)]
    wide = own.pivot_table(index=keys, columns="metric", values="value").rename(columns=KNOWN)
    ood = sft[(sft["split"] == splits.headline.name) & (sft["metric"] == "accuracy")].set_index(keys)["value"]
    joined = wide.join(ood.rename("ood"), how="inner").reset_index()
    return dict(list(joined.groupby(["condition", "seed"], sort=False)))


def regrets(found: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """The regret of each rule on each path: columns condition, seed, rule, step, regret (a share)."""
    rows = []
    for (condition, seed), path in found.items():
        ood = path.set_index("step")["ood"]
        for rule, step in choices(path).items():
            rows.append((condition, seed, rule, step, ood.max() - ood[step]))
    return pd.DataFrame(rows, columns=["condition", "seed", "rule", "step", "regret"])


def by_rule(table: pd.DataFrame) -> dict[str, Estimate]:
    """The mean regret of each rule over conditions, with its interval over seeds, the best rule first."""
    means = table.groupby(["rule", "seed"])["regret"].mean()
    every = {rule: over_seeds(seeds.to_numpy()) for rule, seeds in means.groupby(level="rule", sort=False)}
    return dict(sorted(every.items(), key=lambda item: item[1].value))
