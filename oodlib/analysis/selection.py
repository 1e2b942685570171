"""Which checkpoint to keep, when there is no OOD test: rules that need what a training has anyway, and their regret.

A path is the checkpoints of one training, a row each in the order of steps, with the columns that are known: step,
id_loss, id_accuracy, kl_from_base, angle, effective_rank. A rule chooses a row, or none where a column is missing. Its
regret is the OOD accuracy at the peak less that of its choice: 0 is perfect, and only an oracle knows the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from oodlib.analysis.plan import Plan
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.analysis.sweep import Sweep
from oodlib.config import outputs_folder
from oodlib.io import read_object, shown
from oodlib.models.checkpoints import open_weights
from oodlib.models.pairs import pair_up
from oodlib.models.weights import device
from oodlib.results import TABLES, Results
from oodlib.spectral.angles import compare
from oodlib.spectral.metrics import effective_rank
from oodlib.spectral.svd import as_matrix, count_of, spectrum
from oodlib.tasks import Splits

EARLY = 0.1  # the fixed share of the steps: where the paper's LLaMA peaks, at step 140 of 1,600
KNOWN = {  # of a run's or a sweep's table: metric -> the column of a path, on the trained split or of the weights
    "loss": "id_loss",
    "accuracy": "id_accuracy",
    "kl_from_base": "kl_from_base",
    "angle": "angle",
    "effective_rank": "effective_rank",
    "rotation": "rotation",
}
NULL = "first checkpoint, whatever it is"  # no rule: what all of them should beat
STATE = "trainer_state.json"  # what transformers' Trainer leaves in a checkpoint
LOGGED = {"id_loss": ("eval_loss",), "id_accuracy": ("eval_accuracy", "eval_mean_token_accuracy")}  # the first there is
MEASURED = {  # the sweeps that tell of the rules: plan and phase
    "sweep": ("sweep", "confirm"),
    "mitigations": ("mitigations", "mitigations"),
}
LEADING = "20%"  # of a matrix's directions, whose principal angles are taken; as a run's callback does


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
    """The step that each rule keeps, by its label; of the rules whose columns the path has.

    A rule chooses among the checkpoints that have what it needs. ValueError without any checkpoint but the base.
    """
    path = path[path["step"] > 0].sort_values("step")
    if path.empty:
        raise ValueError("there is no checkpoint to choose, but for the base")
    found = {}
    for rule in (rule for rule in RULES if set(rule.needs) <= set(path.columns)):
        if len(known := path.dropna(subset=list(rule.needs))):
            found[rule.label] = int(known["step"].iloc[rule.choose(known)])
    return found


def paths(table: pd.DataFrame, splits: Splits) -> dict[tuple[str, int], pd.DataFrame]:
    """The SFT paths of a table by condition ("" in a run's) and seed, with ood, the headline's accuracy."""
    if "condition" not in table:
        table = table.assign(condition="")
    sft = table[(table["arm"] == "sft") & table["stage"].isin(("sft", "drift"))]
    keys = ["condition", "seed", "step"]
    own = sft[sft["split"].isin((splits.trained.name, "weights")) & sft["metric"].isin(KNOWN)]
    wide = own.pivot_table(index=keys, columns="metric", values="value").rename(columns=KNOWN)
    if "rotation" in wide:  # of the leading fifth: in place of drift's angle, where that was not measured
        wide["angle"] = wide.get("angle", wide["rotation"]).fillna(wide.pop("rotation"))
    ood = sft[(sft["split"] == splits.headline.name) & (sft["metric"] == "accuracy")].set_index(keys)["value"]
    joined = wide.join(ood.rename("ood"), how="inner").reset_index()
    return dict(list(joined.groupby(["condition", "seed"], sort=False)))


def regrets(found: Mapping[tuple[str, int], pd.DataFrame]) -> pd.DataFrame:
    """The regret of each rule and of NULL on each path: columns condition, seed, rule, step, regret and price (shares).

    price: the highest ID accuracy of the path less that of the choice; NaN where it is not known.
    """
    rows = []
    for (condition, seed), path in found.items():
        at = path.set_index("step")
        known = at.get("id_accuracy", pd.Series(np.nan, index=at.index))
        first = int(at.index[at.index > 0].min())
        for rule, step in {**choices(path), NULL: first}.items():
            rows.append((condition, seed, rule, step, at["ood"].max() - at["ood"][step], known.max() - known[step]))
    return pd.DataFrame(rows, columns=["condition", "seed", "rule", "step", "regret", "price"])


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """Of `regrets` the paths on which every rule chose, if there are any; else all."""
    chose = table.groupby(["condition", "seed"])["rule"].transform("nunique") == table["rule"].nunique()
    return table[chose] if chose.any() else table


def by_rule(table: pd.DataFrame) -> dict[str, Estimate]:
    """The mean regret of each rule over conditions, with its interval over seeds, the best rule first; `comparable`."""
    means = comparable(table).groupby(["rule", "seed"])["regret"].mean()
    every = {rule: over_seeds(seeds.to_numpy()) for rule, seeds in means.groupby(level="rule", sort=False)}
    return dict(sorted(every.items(), key=lambda item: item[1].value))


def rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """`regrets` to read: a row a rule, the best first; points lost with 95 % over seeds, and which steps it chose."""
    table, rows = comparable(table), {}
    for rule, regret in by_rule(table).items():
        mine = table[table["rule"] == rule]
        steps = mine["step"].value_counts(normalize=True).sort_index()
        picks = ", ".join(f"{step}: {share:.0%}" for step, share in steps.items())
        rows[rule] = (regret.text(".1f", 100), f"{100 * mine['price'].mean():.1f}", picks)
    columns = ["OOD points below the peak", "ID points below the best", "steps chosen"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def measured_here() -> dict[str, dict[str, Estimate]]:
    """What each rule lost in the committed measurements, by their name: in tiny-seeds, whose checkpoints lie close
    together, and in the sweeps, whose recipes differ. Empty where they are not at hand."""
    run, found = Results(outputs_folder() / "tiny-seeds"), {}
    if (run.folder / TABLES["measurements"]).exists():
        found["tiny-seeds"] = by_rule(regrets(paths(run.table("measurements"), run.splits)))
    for name, (plan, phase) in MEASURED.items():
        sweep = Sweep(Plan(plan))
        with suppress(RuntimeError):  # nothing of it is measured
            found[name] = by_rule(regrets(paths(sweep.rows(phase), sweep.splits)))
    return found


def advice(found: Mapping[str, Estimate]) -> str:
    """In Markdown, computed: the rule that loses least, and what is lost by keeping the last checkpoint.

    found: as `by_rule` returns it.
    """
    rules = {rule: lost for rule, lost in found.items() if rule != NULL}
    best, last = next(iter(rules)), RULES[0].label
    first = f", the first {found[NULL].text('.1f', 100)}" if NULL in found else ""
    return (
        f"**To choose a checkpoint without an OOD test.** Of {len(rules)} rules, **{best}** loses least: "
        f"{found[best].text('.1f', 100)} points of OOD accuracy below the peak, on average over recipes. The last "
        f"checkpoint loses {found[last].text('.1f', 100)}{first}. Rules that choose the same steps are not told apart."
    )


# ---- anybody's checkpoints -------------------------------------------------------------------------------


def checkpoints(folders: list[Path]) -> dict[int, Path]:
    """Checkpoints by step: folders named NAME-STEP, or one folder that holds some named checkpoint-STEP. ValueError for
    any other."""
    if len(folders) == 1 and (inside := [p for p in folders[0].glob("checkpoint-*") if p.is_dir() and _step(p)]):
        folders = inside
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        if not _step(folder):
            kind = "holds no checkpoints and is none" if len(folders) == 1 else "is no checkpoint"
            raise ValueError(f"{folder} {kind} (a folder named checkpoint-STEP)")
    steps = {_step(folder): folder for folder in folders}
    if len(steps) < len(folders):
        raise ValueError(f"two of the checkpoints are of one step: {', '.join(map(str, folders))}")
    return dict(sorted(steps.items()))


def training_path(
    found: Mapping[int, Path], base: str | None = None, remarks: dict[str, dict[str, str]] | None = None
) -> pd.DataFrame:
    """A path of anybody's checkpoints: of `trainer_state.json` the loss and accuracy of its evaluations, if there are
    any; with the base also angle and effective_rank.

    angle: radians, mean principal angle of the leading fifth of directions; effective_rank: of the change; both are
    means over the matrices. remarks: gets, by checkpoint, what is not used, by name, and why. ValueError, one line, for
    what cannot be read or compared.

    What an evaluation gave is taken from the first checkpoint, of its step or a later one, whose log has it.
    """
    path, remarks = pd.DataFrame({"step": list(found)}), {} if remarks is None else remarks
    for step, folder in sorted(found.items()):
        if not (folder / STATE).exists():
            continue
        for at, column, value in _evaluations(folder / STATE):
            here = path["step"] == at
            known = path.loc[here, column].dropna().tolist() if column in path else []
            if at > step or not here.any() or known == [value]:
                continue
            if not np.isfinite(value):
                remarks.setdefault(str(found[at]), {})[column] = f"{value}: not used"
            elif known:
                said = f"{value:g} in its log, {known[0]:g} in that of an earlier checkpoint: not used"
                remarks.setdefault(str(folder), {})[f"{column} of step {at}"] = said
            else:
                path.loc[here, column] = value
    if base is not None:
        path[["angle", "effective_rank"]] = _turned(base, found.values(), remarks)
    return path


def _evaluations(file: Path) -> Iterator[tuple[int, str, float]]:
    """What a trainer logged of its evaluations: step, column, value."""
    log = read_object(file).get("log_history", [])
    if not isinstance(log, list) or not all(isinstance(row, dict) for row in log):
        raise ValueError(f"{file}: log_history is no list of mappings")
    for row in log:
        for column, names in LOGGED.items():
            if name := next((name for name in names if name in row), None):
                strange = type(row[name]) not in (int, float) or abs(row[name]) > 1e300
                if type(row.get("step")) is not int or strange:
                    raise ValueError(f"{file}: {name} {shown(row[name])} at step {shown(row.get('step'))} is no number")
                yield row["step"], column, float(row[name])


def _turned(base: str, folders: Iterable[Path], said: dict[str, dict[str, str]]) -> list[tuple[float, float]]:
    """The angle and the effective rank of each checkpoint, as in `training_path`; the base is decomposed once."""
    first, opened = open_weights(base), {}
    for folder in folders:
        second = open_weights(folder, first, adapter_base=base)
        pairs, remarks = pair_up(first, second)
        if not pairs:
            raise ValueError(f"nothing of {folder} can be compared with {base}")
        if remarks := {**first.remarks, **second.remarks, **remarks}:
            said.setdefault(str(folder), {}).update(remarks)
        opened[folder] = second, {pair.name: pair.other for pair in pairs}
    measured: dict[Path, list[tuple[float, float]]] = {folder: [] for folder in opened}
    for name in dict.fromkeys(name for _, others in opened.values() for name in others):
        before = spectrum(first.matrix(name).to(device()), f"{name} of {base}")
        for folder, (second, others) in opened.items():
            if name in others:
                weight = as_matrix(second.matrix(others[name]).to(device()), f"{others[name]} of {folder}")
                try:
                    both = compare(before, weight, count_of(LEADING, len(before.values)), name)
                except torch.linalg.LinAlgError as error:
                    raise ValueError(f"{folder}: {others[name]}: {error}") from None
                angle = np.mean([both.angles_left.mean(), both.angles_right.mean()])
                measured[folder].append((angle, effective_rank(both.change)))
    return [tuple(np.mean(rows, axis=0)) for rows in measured.values()]


def _step(folder: Path) -> int:
    """The step that a folder's name ends in; 0 where it does not."""
    last = folder.name.rpartition("-")[2]
    return int(last) if "-" in folder.name and last.isascii() and last.isdigit() else 0
