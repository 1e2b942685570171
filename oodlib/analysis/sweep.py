"""The sweep: many runs of one declared plan, condition by condition and seed by seed, for notebooks 05 and 06.

    params/sweeps/sweep.yaml        the plan: phases (which seeds), and conditions (what each changes, and why)
    outputs/sweep/measurements.csv  the usual columns, and `condition`
    outputs/sweep/manifest.json     for each condition and seed: a mark of its settings, code, machine, time
    outputs/sweep/work/             parts and checkpoints, shared by all conditions; never committed

A condition and seed whose rows are in the table with the settings that it would have now is done, on whatever machine.
One that was cut off goes on from its finished parts and its last checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import skew

from oodlib.config import PARAMS, Config, load_config, outputs_folder, read_yaml
from oodlib.io import COLUMNS, as_measurements, digest, read_json, write_figure, write_json, write_table
from oodlib.provenance import Meter, describe_machine
from oodlib.run import STAGES, Run
from oodlib.stages import ensure
from oodlib.tasks import check_choice

PLAN = PARAMS / "sweeps" / "sweep.yaml"
RUN = ("sft", "rl", "rotation")  # the stages of every condition
EACH = ["arm", "from_step", "seed"]
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Cell:
    """A condition and a seed."""

    condition: str
    config: Config

    @property
    def name(self) -> str:
        return f"{self.condition}/{self.config.seed}"

    @property
    def mark(self) -> str:
        methods = [STAGES[stage].method for stage in RUN]
        return digest([Run(self.config).settings(*RUN), methods])[:16]


class Plan:
    """A plan's file: `common` changes to the configuration that it is `like`, `phases` and `conditions`."""

    def __init__(self, path: Path = PLAN):
        values = read_yaml(Path(path))
        if not isinstance(values, dict) or {"like", "phases", "conditions"} - set(values):
            raise ValueError(f"{path} is no plan of a sweep, which has like, phases and conditions")
        self.like, self.common = values["like"], values.get("common", {})
        self.phases: dict[str, dict[str, Any]] = values["phases"]
        self.conditions: dict[str, dict[str, Any]] = values["conditions"]
        for name, phase in self.phases.items():
            for condition in phase["conditions"]:
                check_choice(f"condition of phase {name}", condition, tuple(self.conditions))

    def config(self, condition: str, seed: int) -> Config:
        check_choice("condition", condition, tuple(self.conditions))
        plain = load_config(self.like, {**self.common, "seed": seed, "n_seeds": 1})
        return plain.changed({"machine.reference": False, **self.conditions[condition].get("changes", {})})

    def cells(self, phase: str) -> Iterator[Cell]:
        """The cells of a phase, seed by seed, so that what is there after an interruption is balanced."""
        for seed in self.seeds(phase):
            for condition in self.phases[phase]["conditions"]:
                yield Cell(condition, self.config(condition, seed))

    def seeds(self, phase: str) -> list[int]:
        check_choice("phase", phase, tuple(self.phases))
        return self.phases[phase]["seeds"]

    def table(self, *phases: str) -> pd.DataFrame:
        """The conditions of some phases, to read: why each is there, and what it changes."""
        rows = {}
        for name in dict.fromkeys(condition for phase in phases for condition in self.phases[phase]["conditions"]):
            changes = self.conditions[name].get("changes", {})
            texts = (f"{part}: " + ", ".join(f"{k} {v}" for k, v in change.items()) for part, change in changes.items())
            rows[name] = (self.conditions[name]["why"], "; ".join(texts))
        return pd.DataFrame.from_dict(rows, orient="index", columns=["why", "changes"])


class Sweep:
    """A plan and the folder of its results."""

    def __init__(self, plan: Plan | None = None, folder: Path | None = None):
        self.plan, self.folder = plan or Plan(), Path(folder) if folder else outputs_folder() / "sweep"

    @classmethod
    def open(cls, plan: str | None = None, folder: str | None = None) -> Sweep:
        """A sweep by the names of its plan's file and its folder; None: the project's own. Says what is there."""
        sweep = cls(Plan(Path(plan)) if plan else None, Path(folder) if folder else None)
        table = sweep.table()
        if table.empty:
            raise RuntimeError(f"{sweep.folder} holds no measurements yet: run `oodlib sweep explore` first")
        for phase in sweep.plan.phases:
            print(f"{phase}: {len(sweep.rows(phase).groupby(['condition', 'seed']))} conditions and seeds are measured")
        return sweep

    def rows(self, phase: str) -> pd.DataFrame:
        """The rows of a phase's conditions and seeds, the conditions in the plan's order."""
        seeds, conditions = self.plan.seeds(phase), self.plan.phases[phase]["conditions"]
        table = self.table()
        rows = table[table["seed"].isin(seeds) & table["condition"].isin(conditions)]
        return rows.sort_values("condition", key=lambda c: c.map(conditions.index), kind="stable", ignore_index=True)

    def figure(self, figure: Any, name: str, save: bool) -> Any:
        """The figure, kept as PNG and SVG in the sweep's folder if asked for."""
        if save:
            write_figure(self.folder, figure, name)
        return figure

    def table(self) -> pd.DataFrame:
        """All rows so far: condition, and a run's columns."""
        path = self.folder / "measurements.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["condition", *COLUMNS])

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.folder / "manifest.json", {"cells": {}})

    def left(self, phase: str) -> list[Cell]:
        done = self.manifest["cells"]
        return [cell for cell in self.plan.cells(phase) if done.get(cell.name, {}).get("mark") != cell.mark]

    def run(self, phase: str, at_once: int = 2) -> Iterator[tuple[list[Cell], int]]:
        """Run what is left of a phase; yields the cells just done and how many are left.

        `at_once` seeds of a condition run together, so that as many cores have work to the end.
        """
        while left := self.left(phase):
            condition = left[0].condition
            seeds = [cell for cell in left if cell.condition == condition][:at_once]
            together = [c for c in seeds if c.config.seed - seeds[0].config.seed == seeds.index(c)]
            self._run(together)
            yield together, len(left) - len(together)

    def _run(self, cells: list[Cell]) -> None:
        config, condition = cells[0].config.changed({"n_seeds": len(cells)}), cells[0].condition
        work = self.folder / "work"
        run = Run(config, work / "runs" / f"{condition}-{config.seed}", work)
        with Meter() as meter:
            ensure(run, *RUN)
        old, manifest, machine = self.table(), self.manifest, describe_machine()
        again = (old["condition"] == condition) & old["seed"].isin(config.seeds)
        frames = [frame for frame in (old[~again], summary(run).assign(condition=condition)) if len(frame)]
        table = pd.concat(frames)[["condition", *COLUMNS]].sort_values(["condition", *COLUMNS[:-2]], kind="stable")
        write_table(self.folder / "measurements.csv", table)
        hardware = machine["hardware"]
        about = {
            "wall_s": round(meter.wall_s / len(cells), 1),
            "git": machine["git"],
            "tree": machine["tree"],
            "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}",
        }
        measured = {**manifest["cells"], **{cell.name: {"mark": cell.mark, **about} for cell in cells}}
        versions = {name: machine[name] for name in ("packages", "python")}
        write_json(self.folder / "manifest.json", {**versions, "cells": dict(sorted(measured.items()))})


def summary(run: Run) -> pd.DataFrame:
    """What the sweep keeps of a run: accuracies, how RL's rewards and advantages were spread, and mean angles."""
    table, last = run.table("measurements"), run.config.rl.steps
    kept = table["split"].isin(["id", "ood"]) & table["metric"].str.match(r"accuracy|malformed|wrong_numbers|loss")
    angles = table["metric"].isin(["mean_angle_left", "mean_angle_right"])
    rows = []
    for (arm, start, seed), curve in table.query("split == 'train' and metric == 'reward'").groupby(EACH):
        values = curve.sort_values("step")["value"].to_numpy()
        tenth = max(1, len(values) // 10)
        for end, part in (("first", values[:tenth]), ("last", values[-tenth:])):
            rows.append(("rl", arm, start, last, seed, "train", f"reward_{end}", part.mean(), len(part)))
    for (arm, start, seed), played in run.table("rollouts").groupby(EACH, observed=True):
        rows += [("rl", arm, start, last, seed, "rollouts", *number) for number in spread(played)]
    return pd.concat([table[kept | angles], as_measurements(rows)], ignore_index=True)


def spread(played: pd.DataFrame) -> list[tuple[str, float, int]]:
    """How the advantages of an RL run's first tenth, near its start, were spread: metric, value, n."""
    played = played[played["update"] <= played["update"].min() + played["update"].max() / 10]
    advantage, groups = played["advantage"].to_numpy(), played.groupby(["update", "group"])["reward"]
    centred = played["reward"] - groups.transform("mean")  # unlike GRPO's advantages not of unit variance in a group
    numbers = {
        "advantage_skewness": skew(advantage) if advantage.std() else 0.0,
        "groups_without_contrast": (groups.nunique() == 1).mean(),
        "solved": (played["outcome"] == "correct").mean(),
        **{f"centred_q{q}": np.percentile(centred, q) for q in QUANTILES},
    }
    return [(name, float(value), len(played)) for name, value in numbers.items()]
