"""The campaign: many runs of one declared plan, regime by regime and seed by seed, for notebooks 05 and 06.

    params/plans/campaign.yaml         the plan: phases (which seeds), and regimes (what each changes, and why)
    outputs/campaign/measurements.csv  the usual columns, and `regime`
    outputs/campaign/manifest.json     for each cell (a regime and a seed): parameters' mark, code, machine, time
    outputs/campaign/work/             parts and checkpoints, shared by all regimes; never committed

A cell whose rows are in the table with the parameters that it would have now is done, on whatever machine. One
that was cut off goes on from its finished parts and its last checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import skew

from oodlib.presets import PARAMS, ROOT, Preset, digest, load_preset
from oodlib.provenance import Meter, code_digest, describe_machine
from oodlib.runs import COLUMNS, Run, write_figure, write_table, write_whole
from oodlib.stages import ensure
from oodlib.tasks import check_choice

PLAN, FOLDER = PARAMS / "plans" / "campaign.yaml", ROOT / "outputs" / "campaign"
STAGES = ("sft", "rl", "rotation")
QUANTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True)
class Cell:
    """One regime and one seed."""

    regime: str
    preset: Preset

    @property
    def name(self) -> str:
        return f"{self.regime}/{self.preset.seed}"

    @property
    def mark(self) -> str:
        return digest(self.preset.parameters(*STAGES))[:16]


class Plan:
    """A plan's file: `common` changes to the preset that it is `like`, `phases` and `regimes`."""

    def __init__(self, path: Path = PLAN):
        values = yaml.safe_load(Path(path).read_text())
        self.like, self.common = values["like"], values.get("common", {})
        self.phases: dict[str, dict[str, Any]] = values["phases"]
        self.regimes: dict[str, dict[str, Any]] = values["regimes"]
        for name, phase in self.phases.items():
            for regime in phase["regimes"]:
                check_choice(f"regime of phase {name}", regime, tuple(self.regimes))

    def preset(self, regime: str, seed: int) -> Preset:
        check_choice("regime", regime, tuple(self.regimes))
        changes = {**self.common, **self.regimes[regime].get("changes", {})}
        return load_preset(self.like, **changes, seed=seed, n_seeds=1, reference=False)

    def cells(self, phase: str) -> Iterator[Cell]:
        """The cells of a phase, seed by seed, so that what is there after an interruption is balanced."""
        check_choice("phase", phase, tuple(self.phases))
        for seed in self.phases[phase]["seeds"]:
            for regime in self.phases[phase]["regimes"]:
                yield Cell(regime, self.preset(regime, seed))


class Campaign:
    """A plan and the folder of its results."""

    def __init__(self, plan: Plan | None = None, folder: Path = FOLDER):
        self.plan, self.folder = plan or Plan(), Path(folder)

    @classmethod
    def open(cls, plan: str | None = None, folder: str | None = None) -> Campaign:
        """A campaign by the names of its plan's file and its folder; None: the project's own. Says what is there."""
        mine = cls(Plan(Path(plan)) if plan else None, Path(folder) if folder else FOLDER)
        for phase in mine.plan.phases:
            cells = list(mine.plan.cells(phase))
            done = len(cells) - len(mine.left(phase))
            print(f"{phase}: {done} of {len(cells)} cells (a regime and a seed) are there")
        if mine.table().empty:
            raise RuntimeError(f"{mine.folder} holds no measurements yet: run `oodlib campaign explore` first")
        return mine

    def codes(self, phase: str) -> set[str]:
        """The versions of the code that measured what is there of a phase; one, unless something went wrong."""
        done = self.manifest()["cells"]
        return {done[cell.name]["code"] for cell in self.plan.cells(phase) if cell.name in done}

    def seeds(self, phase: str) -> list[int]:
        check_choice("phase", phase, tuple(self.plan.phases))
        return self.plan.phases[phase]["seeds"]

    def rows(self, phase: str) -> pd.DataFrame:
        """The rows of a phase's regimes and seeds, the regimes in the plan's order."""
        table, regimes = self.table(), self.plan.phases[phase]["regimes"]
        table = table[table["seed"].isin(self.seeds(phase)) & table["regime"].isin(regimes)]
        return table.sort_values("regime", key=lambda r: r.map(regimes.index), kind="stable", ignore_index=True)

    def figure(self, figure: Any, name: str, save: bool) -> Any:
        """The figure, kept as PNG and SVG in the campaign's folder if asked for."""
        if save:
            write_figure(self.folder, figure, name)
        return figure

    def table(self) -> pd.DataFrame:
        """All rows so far: regime, and a run's columns."""
        path = self.folder / "measurements.csv"
        return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["regime", *COLUMNS])

    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        return json.loads(path.read_text()) if path.exists() else {"cells": {}}

    def left(self, phase: str) -> list[Cell]:
        done = self.manifest()["cells"]
        return [cell for cell in self.plan.cells(phase) if done.get(cell.name, {}).get("mark") != cell.mark]

    def run(self, phase: str, at_once: int = 2) -> Iterator[tuple[list[Cell], int]]:
        """Run what is left of a phase; yields the cells just done and how many are left.

        `at_once` seeds of a regime run together, so that as many cores have work to the end. Raises RuntimeError where
        a part of the phase was measured with other code: one interval must not be over two programs.
        """
        done = self.codes(phase) - {code_digest()}
        if done:
            raise RuntimeError(
                f"a part of phase {phase!r} was measured with other code ({', '.join(sorted(done))}; this is "
                f"{code_digest()}): check out that version to go on (manifest.json names its commit), or remove "
                f"{self.folder / 'manifest.json'} to measure all of it again"
            )
        while left := self.left(phase):
            regime = left[0].regime
            seeds = [cell for cell in left if cell.regime == regime][:at_once]
            together = [c for c in seeds if c.preset.seed - seeds[0].preset.seed == seeds.index(c)]
            self._run(together)
            yield together, len(left) - len(together)

    def _run(self, cells: list[Cell]) -> None:
        preset = cells[0].preset.model_copy(update={"n_seeds": len(cells)})
        work = self.folder / "work"
        run = Run(preset, work / "runs" / f"{cells[0].regime}-{preset.seed}", work)
        with Meter() as meter:
            for stage in STAGES:
                ensure(run, stage)
        found = summary(run).assign(regime=cells[0].regime)
        self._keep(cells, found, meter)

    def _keep(self, cells: list[Cell], found: pd.DataFrame, meter: Meter) -> None:
        old, manifest, machine = self.table(), self.manifest(), describe_machine()
        seeds = [cell.preset.seed for cell in cells]
        again = (old["regime"] == cells[0].regime) & old["seed"].isin(seeds)
        table = pd.concat([f for f in (old[~again], found) if len(f)])[["regime", *COLUMNS]]
        keys = ["regime", *COLUMNS[:-2]]
        write_table(self.folder / "measurements.csv", table.sort_values(keys, kind="stable"))
        for cell in cells:
            hardware = machine["hardware"]
            manifest["cells"][cell.name] = {
                "mark": cell.mark,
                "wall_s": round(meter.wall_s / len(cells), 1),
                "code": code_digest(),
                "git": machine["git"],
                "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}",
            }
        manifest |= {"packages": machine["packages"], "python": machine["python"], "cells": manifest["cells"]}
        text = json.dumps({**manifest, "cells": dict(sorted(manifest["cells"].items()))}, indent=1)
        write_whole(self.folder / "manifest.json", lambda p: p.write_text(text + "\n"))


def summary(run: Run) -> pd.DataFrame:
    """What the campaign keeps of a run: accuracies, how RL's rewards and advantages were spread, and mean angles."""
    table = run.table("measurements")
    kept = table["split"].isin(["id", "ood"]) & table["metric"].str.match(r"accuracy|malformed|wrong_numbers|loss")
    angles = table["metric"].isin(["mean_angle_left", "mean_angle_right"])
    curves = table[(table["split"] == "train") & (table["metric"] == "reward")]
    rows = []
    for key, curve in curves.groupby(["arm", "from_step", "seed", "metric"]):
        values = curve.sort_values("step")["value"].to_numpy()
        ends = {"first": values[: max(1, len(values) // 10)], "last": values[-max(1, len(values) // 10) :]}
        arm, start, seed, metric = key
        rows += [
            ("rl", arm, start, run.preset.rl_steps, seed, "train", f"{metric}_{end}", part.mean(), len(part))
            for end, part in ends.items()
        ]
    for key, played in run.table("rollouts").groupby(["arm", "from_step", "seed"], observed=True):
        rows += [("rl", *key[:2], run.preset.rl_steps, key[2], "rollouts", *m) for m in spread(played)]
    return pd.concat([table[kept | angles], pd.DataFrame(rows, columns=COLUMNS)], ignore_index=True)


def spread(played: pd.DataFrame) -> list[tuple[str, float, int]]:
    """How the advantages of an RL run's first tenth, near its start, were spread: metric, value, n."""
    played = played[played["update"] <= played["update"].min() + played["update"].max() / 10]
    advantage, n = played["advantage"].to_numpy(), len(played)
    groups = played.groupby(["update", "group"])["reward"]
    centred = played["reward"] - groups.transform("mean")  # unlike GRPO's advantages not of unit variance in a group
    numbers = {
        "advantage_skewness": skew(advantage) if advantage.std() else 0.0,
        "groups_without_contrast": (groups.nunique() == 1).mean(),
        "solved": (played["outcome"] == "correct").mean(),
        **{f"centred_q{q}": np.percentile(centred, q) for q in QUANTILES},
    }
    return [(name, float(value), n) for name, value in numbers.items()]
