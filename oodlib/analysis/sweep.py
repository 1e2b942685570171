"""The sweep: many runs of one declared plan, cell by cell, for notebooks 05 and 06.

    params/sweeps/NAME.yaml        the plan: see `analysis.plan`
    outputs/NAME/measurements.csv  the usual columns, and `condition`
    outputs/NAME/manifest.json     for each cell: a mark of its settings, code, machine, time
    outputs/NAME/work/             parts and checkpoints, shared by all cells; never committed

A cell is a block, a condition and a seed. It is done if the manifest has it with the settings that it would have now,
on whatever machine it was measured. One that was cut off goes on from its finished parts and last checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import skew

from oodlib.analysis.mitigations import at_strengths, chosen, curves
from oodlib.analysis.plan import Cell, Plan
from oodlib.analysis.predictors import forgetting
from oodlib.analysis.same_start import paths
from oodlib.config import load_config, outputs_folder
from oodlib.io import (
    COLUMNS,
    as_measurements,
    read_json,
    read_table,
    shown,
    write_figure,
    write_json,
    write_table,
)
from oodlib.notebook import parameters
from oodlib.provenance import Meter, describe_machine
from oodlib.registry import MITIGATIONS
from oodlib.results import NUMBERS, TEXTS
from oodlib.run import Run
from oodlib.stages import ensure
from oodlib.tasks import Splits, get_task

_TEXT = str | Path
PARAMETERS = {
    "plan": _TEXT,
    "folder": _TEXT | None,
    "search": _TEXT,
    "phase": _TEXT,
    "save": bool,
}  # of notebooks 05, 06
EACH = ["arm", "from_step", "seed"]
LEFT_OUT = ("illegal", "malformed", "reward")  # metrics of an evaluation that the analysis does not need


class Sweep:
    """A plan and the folder of its results; without one, outputs/ and the name of the plan's file."""

    def __init__(self, plan: Plan | None = None, folder: Path | None = None):
        self.plan = plan or Plan()
        self.folder = Path(folder) if folder else outputs_folder() / self.plan.path.stem

    @classmethod
    def from_notebook(cls) -> Sweep:
        """The sweep that a notebook's parameters cell names. Says what is there.

        ValueError for a parameter that there is none of, or whose value is of another type.
        """
        given = parameters(first="plan")
        for name, value in given.items():
            if name not in PARAMETERS:
                raise ValueError(f"unknown parameter {name} = {shown(value)}: allowed are {', '.join(PARAMETERS)}")
            if not isinstance(value, PARAMETERS[name]):
                expected = "True or False" if name == "save" else "a name or a path, as text"
                raise ValueError(f"{name} = {shown(value)}: expected {expected}")
        return cls.open(given["plan"], given["folder"])

    @classmethod
    def open(cls, plan: str | Path = "sweep", folder: str | None = None) -> Sweep:
        """A sweep by its plan, a name in params/sweeps or a file, and its folder. Says what is there."""
        sweep = cls(Plan(plan), Path(folder) if folder else None)
        cells = sweep.manifest["cells"]
        if not cells:
            command = f"oodlib sweep {next(iter(sweep.plan.phases))} --plan {plan}"
            raise RuntimeError(f"{sweep.folder} holds no measurements yet: run `{command}` first")
        for phase in sweep.plan.phases:
            wanted = sweep.plan.cell_names(phase)
            print(f"{phase}: {len(cells.keys() & set(wanted))} of {len(wanted)} cells are measured")
        return sweep

    @property
    def splits(self) -> Splits:
        """The splits of the task that is measured."""
        task = load_config(self.plan.like, self.plan.common).task
        return get_task(task.name, task.options).splits

    def rows(self, phase: str) -> pd.DataFrame:
        """The rows of a phase's conditions and seeds, in the plan's order. RuntimeError where nothing is measured."""
        seeds, names, table = self.plan.seeds(phase), self.plan.names(phase), self.table()
        rows = table[table["seed"].isin(seeds) & table["condition"].isin(names)]
        if rows.empty:
            command = f"oodlib sweep {phase} --plan {self.plan.path.stem}"
            raise RuntimeError(f"nothing of {phase} is measured yet: run `{command}` first")
        return rows.sort_values("condition", key=lambda c: c.map(names.index), kind="stable", ignore_index=True)

    def mitigations(self, phase: str) -> pd.DataFrame:
        """Accuracy along SFT with each mitigation of a phase, at each strength: `analysis.mitigations.curves`."""
        return curves(self.rows(phase), dict(self.plan.mitigations(phase)["name"]), self.splits)

    def chosen(self, phase: str = "mitigations", search: str = "search") -> dict[str, str]:
        """The mitigations of a phase at the strengths that the phase `search` chose: `analysis.mitigations.chosen`."""
        about = self.plan.mitigations(phase)
        along = self.mitigations(search) if about["mitigation"].duplicated().any() else pd.DataFrame()
        return chosen(along, dict(about[["name", "mitigation"]].itertuples(index=False)), about["name"].iloc[0])

    def evidence(self, phase: str = "mitigations") -> dict[str, pd.DataFrame]:
        """What the claims about sweeps are judged by, of what there is: see `analysis.evidence.Evidence`."""
        rows, found = self.rows(phase), {}
        found["mitigations"] = at_strengths(self.mitigations(phase), self.chosen(phase))
        if (rows["stage"] == "drift").any():
            found["drift"] = forgetting(rows, self.splits)
        for block in (self.plan.blocks[name] for name in self.plan.phases[phase]["blocks"]):
            for start in block.get("starts", []):
                arms = rows[rows["condition"] == block["conditions"][0]]
                found["same_start"] = paths(arms, start, self.splits)
        return found

    def missing(self, phase: str) -> str:
        """What of a phase is not measured, in Markdown."""
        cells, done = self.plan.cell_names(phase), self.manifest["cells"]
        if not (left := [name for name in cells if name not in done]):
            return f"All {len(cells)} cells of *{phase}* are measured."
        seeds = {int(name.rpartition("/")[2]) for name in cells if name in done}
        return (
            f"**Not all is measured:** {len(left)} of {len(cells)} cells of *{phase}* are missing; seeds with some "
            f"results: {', '.join(map(str, sorted(seeds))) or 'none'}. What follows holds for what is there."
        )

    def figure(self, figure: Any, name: str, save: bool) -> Any:
        """The figure, kept as PNG and SVG in the sweep's folder if asked for."""
        if save:
            write_figure(self.folder, figure, name)
        return figure

    def step_times(self) -> dict[str, float]:
        """What a training step with each mitigation takes, in steps of plain SFT; empty where that was not measured."""
        path = self.folder / "step_times.csv"
        return dict(pd.read_csv(path)[["mitigation", "times plain SFT"]].to_numpy()) if path.exists() else {}

    def table(self) -> pd.DataFrame:
        """All rows so far: condition, and a run's columns."""
        path = self.folder / "measurements.csv"
        if not path.exists():
            return pd.DataFrame(columns=["condition", *COLUMNS])
        return read_table(path, NUMBERS["measurements"], ("condition", *TEXTS["measurements"]))

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        value = read_json(path, {"cells": {}})
        cells = value.get("cells")
        if not isinstance(cells, dict) or not all(isinstance(cell, dict) for cell in cells.values()):
            raise ValueError(f"{path}: cells: expected a mapping of what is known of each cell, not {shown(cells)}")
        return value

    def left(self, phase: str) -> list[Cell]:
        done = self.manifest["cells"]
        return [cell for cell in self.plan.cells(phase) if done.get(cell.name, {}).get("mark") != cell.mark]

    def begun(self, phase: str) -> bool:
        """Whether a cell of a phase is measured."""
        return not self.manifest["cells"].keys().isdisjoint(self.plan.cell_names(phase))

    def run(self, phase: str, at_once: int = 2) -> Iterator[tuple[list[Cell], int]]:
        """Run what is left of a phase; yields the cells just done and how many are left.

        `at_once` seeds of a block and condition run together, so that as many cores have work to the end, each job on
        one of them.
        """
        while left := self.left(phase):
            first = left[0]
            alike = [cell for cell in left if (cell.block, cell.condition) == (first.block, first.condition)][:at_once]
            together = [cell for i, cell in enumerate(alike) if cell.config.seed == first.config.seed + i]
            self._run(together)
            yield together, len(left) - len(together)

    def _run(self, cells: list[Cell]) -> None:
        cell, work = cells[0], self.folder / "work"
        config = cell.config.changed({"n_seeds": len(cells)})
        run = Run(config, work / "runs" / f"{cell.block}-{cell.condition}-{config.seed}", work)
        with Meter() as meter:
            ensure(run, *cell.stages)
            rows = summary(run)
            if cell.drift:
                measure_drift = import_module("oodlib.spectral.drift").measure_drift  # late: it takes the libraries
                jobs = (delayed(measure_drift)(run, seed, cell.drift, "rl" in cell.stages) for seed in config.seeds)
                rows = pd.concat([rows, *Parallel(n_jobs=len(cells))(jobs)], ignore_index=True)
        machine = describe_machine()
        hardware = machine["hardware"]
        write_table(self.folder / "measurements.csv", self._merged(rows.assign(condition=cell.condition)))
        about = {
            "wall_s": round(meter.wall_s / len(cells), 1),
            "git": machine["git"],
            "tree": machine["tree"],
            "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}",
        }
        planned = {name for phase in self.plan.phases for name in self.plan.cell_names(phase)}
        measured = {name: value for name, value in self.manifest["cells"].items() if name in planned}
        measured |= {cell.name: {"mark": cell.mark, **about} for cell in cells}
        versions = {name: machine[name] for name in ("packages", "python")}
        write_json(self.folder / "manifest.json", {**versions, "cells": dict(sorted(measured.items()))})

    def _merged(self, new: pd.DataFrame) -> pd.DataFrame:
        """The table with new rows in place of old ones of the same arm, start, condition and seed.

        Rows of conditions and seeds that the plan no longer has are dropped.
        """
        old, keys = self.table(), ["condition", "seed", "stage", "arm", "from_step"]
        planned = [
            (n, seed) for phase in self.plan.phases for n in self.plan.names(phase) for seed in self.plan.seeds(phase)
        ]
        again = pd.MultiIndex.from_frame(old[keys]).isin(pd.MultiIndex.from_frame(new[keys]))
        kept = pd.MultiIndex.from_frame(old[["condition", "seed"]]).isin(planned) & ~again
        table = pd.concat([frame for frame in (old[kept], new) if len(frame)])[["condition", *COLUMNS]]
        return table.astype({"value": float}).sort_values(["condition", *COLUMNS[:-2]], kind="stable")


def summary(run: Run) -> pd.DataFrame:
    """What the sweep keeps of a run: what the splits' evaluations say, mean rotation, RL's rewards and advantages.

    Of the task's probes nothing; of an arm's rotation the last update's.
    """
    table, last = run.table("measurements"), run.config.rl.steps
    kept = table["split"].isin(run.splits.names) & ~table["metric"].isin(LEFT_OUT)
    turned = (table["split"] == "weights") & (table["metric"] == "rotation")
    # SFT's rotation is not that of weights that were edited after it
    edited = run.config.sft.mitigation != "none" and MITIGATIONS.get(run.config.sft.mitigation).edit
    turned &= ((table["stage"] == "sft") & (not edited)) | (table["step"] == last)
    rows = []
    for (arm, start, seed), curve in table.query("split == 'train' and metric == 'reward'").groupby(EACH):
        values = curve.sort_values("step")["value"].to_numpy()
        tenth = max(1, len(values) // 10)
        for end, part in (("first", values[:tenth]), ("last", values[-tenth:])):
            rows.append(("rl", arm, start, last, seed, "train", f"reward_{end}", part.mean(), len(part)))
    for (arm, start, seed), played in run.table("rollouts").groupby(EACH, observed=True):
        rows += [("rl", arm, start, last, seed, "rollouts", *number) for number in spread(played)]
    return pd.concat([table[kept | turned], as_measurements(rows)], ignore_index=True)


def spread(played: pd.DataFrame) -> list[tuple[str, float, int]]:
    """How the advantages of an RL run's first tenth, near its start, were spread: metric, value, n."""
    played = played[played["update"] <= played["update"].min() + played["update"].max() / 10]
    advantage, groups = played["advantage"].to_numpy(), played.groupby(["update", "group"])["reward"]
    numbers = {
        "advantage_skewness": skew(advantage) if advantage.std() else 0.0,
        "groups_without_contrast": (groups.nunique() == 1).mean(),
        "solved": (played["outcome"] == "correct").mean(),
    }
    return [(name, float(value), len(played)) for name, value in numbers.items()]
