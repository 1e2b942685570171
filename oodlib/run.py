"""A run: a folder of measurements, filled by independent jobs; each is done completely or not at all.

    outputs/tiny/
        manifest.json          settings, seeds, versions, hardware, time and memory a stage
        measurements.csv       stage, arm, from_step, step, seed, split, metric, value, n
        hands.parquet          the outcome of every problem in every evaluation
        rollouts.parquet       answer, outcome, reward and advantage of every RL sample
        rotation.parquet       singular values and angles of every weight matrix
        scorecard.json, figures/, notebooks/
        parts/                 what each job measured; the tables above are put together from these
        checkpoints/           weights; never committed

A job is done when its part lies in parts/ with the key that it would have now: the settings that decide its result, its
seed, and the methods' versions. `Results` reads such a folder, whatever code made it; `Run` writes one.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from oodlib.config import Config, config_from, outputs_folder
from oodlib.io import (
    COLUMNS,
    clear_error,
    digest,
    first_fault,
    read_json,
    read_table,
    shown,
    write_figure,
    write_json,
    write_table,
    write_text,
    write_whole,
)
from oodlib.models.sources import fingerprint, model_folder
from oodlib.notebook import parameters
from oodlib.provenance import describe_machine
from oodlib.registry import BASELINES
from oodlib.tasks import Splits, Task, get_task

TABLES = {
    "measurements": "measurements.csv",
    "hands": "hands.parquet",
    "rollouts": "rollouts.parquet",
    "rotation": "rotation.parquet",
}
NUMBERS = {  # columns that each table must have, of numbers
    "measurements": ("from_step", "step", "seed", "value", "n"),
    "hands": ("from_step", "step", "seed"),
    "rollouts": ("from_step", "seed", "update", "group", "reward", "advantage"),
    "rotation": ("from_step", "step", "seed", "index", "value"),
}
TEXTS = {  # and of text
    "measurements": ("stage", "arm", "split", "metric"),
    "hands": ("stage", "arm", "split", "problem", "outcome"),
    "rollouts": ("stage", "arm", "problem", "outcome"),
    "rotation": ("stage", "arm", "module", "metric"),
}


RARE = 0.05  # answers that are right, as a share, below which a run is judged by reading


@dataclass(frozen=True)
class Stage:
    """A part of the study, with a section of its own in the configuration.

    Attributes:
        after: the stages whose settings its results depend on too.
        method: the version of how it measures, raised by hand when its numbers are meant to change.
    """

    after: tuple[str, ...]
    method: int


STAGES = {
    "sft": Stage((), 3),
    "rl": Stage(("sft",), 2),
    "rotation": Stage(("sft", "rl"), 1),
    "surgery": Stage(("sft",), 2),
}


@dataclass(frozen=True)
class Job:
    """One independent piece of work: `function(run, seed, **arguments)`, named "module:function", returns tables.

    `name` is the folder of its part; `cost` its expected work in sequences trained on (one generated or
    scored counts as a third), for the estimate of the time left.
    """

    name: str
    stage: str
    function: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)
    cost: float = 1.0


def judged_by(measurements: pd.DataFrame, splits: Splits) -> str:
    """The metric by which a run is judged: accuracy, or numbers_read where hardly a headline answer is right at any SFT
    checkpoint (less than RARE), as of a small language model that reads hands and cannot make formulas."""
    sft = measurements[(measurements["stage"] == "sft") & (measurements["split"] == splits.headline.name)]
    means = sft.groupby(["metric", "step"], observed=True)["value"].mean()
    known = means.index.unique("metric")
    rare = "accuracy" in known and means["accuracy"].max() < RARE
    return "numbers_read" if rare and "numbers_read" in known else "accuracy"


class Busy(RuntimeError):
    """Another process is writing into the run's folder."""


class StageNote(BaseModel, extra="allow"):
    """What a manifest says of a stage."""

    wall_s: float = 0.0
    peak_mib: float = 0.0
    seeds: list[int] | None = None  # of a merged run, where not all of its seeds have the stage


class Manifest(BaseModel):
    """What is read of a manifest."""

    seeds: list[int] = []
    settings: dict[str, dict[str, Any]] = {}
    splits: Splits | None = None
    stages: dict[str, StageNote] = {}
    runs: list[dict[str, Any]] = []  # of a merged run: what the manifests of those it was made of say of their code


class Results:
    """What lies in a run's folder, to read. A file that is damaged is a ValueError, one line with its name."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def table(self, name: str, stage: str | None = None) -> pd.DataFrame:
        """A table of `TABLES`, of all stages or one; empty where there is none."""
        path = self.folder / TABLES[name]
        if not path.exists():
            return pd.DataFrame(columns=COLUMNS)
        frame = read_table(path, NUMBERS[name], TEXTS[name])
        return frame[frame["stage"] == stage].reset_index(drop=True) if stage else frame

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        value = read_json(path, {})
        try:
            Manifest.model_validate(value)
        except ValidationError as error:
            raise ValueError(f"{path}: {first_fault(error)}") from None
        return value

    @property
    def splits(self) -> Splits:
        """The splits of the task that was measured."""
        if not (splits := self.manifest.get("splits")):
            raise ValueError(f"{self.folder / 'manifest.json'}: no splits: it does not say which were measured")
        return Splits.from_dict(splits)

    def holds(self, stage: str, settings: Mapping[str, Any], seeds: list[int]) -> bool:
        """Whether a stage was measured with these settings and seeds."""
        known = self.manifest.get("settings", {})
        same = all(known.get(section) == values for section, values in settings.items())
        note = self.manifest.get("stages", {}).get(stage)
        return same and self.manifest.get("seeds") == seeds and note is not None and not note.get("seeds")


class Run:
    """A configuration and the folder that holds its results."""

    def __init__(self, config: Config, folder: Path | None = None, store: Path | None = None):
        self.config = config
        self.folder = Path(folder) if folder else config.folder()
        self.store = store or self.folder  # where parts and checkpoints lie; several runs may share one
        self.sources: dict[str, Path] = {}  # stage -> the folder whose tables are read
        self.borrowed: set[str] = set()  # stages read from the committed reference run

    @classmethod
    def from_notebook(cls, *besides: str) -> Run:
        """The run that a notebook's parameters cell describes, but for those `besides`. Says where its results lie."""
        run = cls(config_from({name: v for name, v in parameters().items() if name not in besides}))
        print(f"preset {run.config.preset}, seed {', '.join(map(str, run.config.seeds))}; results in {run.folder}")
        return run

    @cached_property
    def task(self) -> Task:
        return get_task(self.config.task.name, self.config.task.options)

    @property
    def splits(self) -> Splits:
        return self.task.splits

    def peak_step(self, seed: int) -> int:
        """The SFT step with the highest headline (OOD) accuracy of a seed, or reading (see `judged_by`); the earliest,
        if several are equal."""
        table = self.table("measurements")
        curve = table[table["metric"] == judged_by(table, self.splits)].query("stage == 'sft' and seed == @seed")
        curve = curve[curve["split"] == self.splits.headline.name].sort_values("step")
        return int(curve["step"].iloc[curve["value"].to_numpy().argmax()])

    # ---- tables ------------------------------------------------------------------------------------

    def table(self, name: str, stage: str | None = None) -> pd.DataFrame:
        """A table of `TABLES`, of all stages or one, from this run or from the reference where that was loaded."""
        if not stage and not self.sources:
            return Results(self.folder).table(name)
        stages = [stage] if stage else sorted(self.sources)
        frames = [Results(self.sources.get(one, self.folder)).table(name, one) for one in stages]
        frames = [frame for frame in frames if len(frame)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)

    def collect(self, jobs: list[Job]) -> None:
        """Put the run's tables together from the parts of the finished ones among its jobs.

        A stage of which no job is finished keeps the rows that it has, if they are of the same settings.
        """
        finished = [job for job in jobs if self.done(job)]
        renewed = {job.stage for job in finished}
        manifest = Results(self.folder).manifest
        kept = [stage for stage in STAGES if stage not in renewed and self._unchanged(stage, manifest)]
        for name, file in TABLES.items():
            parts = [self.part(job) / f"{name}.parquet" for job in finished]
            frames = [read_table(part) for part in parts if part.exists()]
            path = self.folder / file
            if kept and path.exists():
                old = Results(self.folder).table(name)
                frames.append(old[old["stage"].isin(kept) & old["seed"].isin(self.config.seeds)])
            if frames:
                write_table(path, pd.concat(frames, ignore_index=True))

    # ---- jobs --------------------------------------------------------------------------------------

    def settings(self, *stages: str, jobs: bool = True) -> dict[str, Any]:
        """The settings that decide the results of these stages (default: all), with the model's fingerprint.

        jobs: also the settings that only list jobs, and so decide which results there are.
        """
        sections = dict.fromkeys(s for stage in stages or STAGES for s in (*STAGES[stage].after, stage))
        found = self.config.results_of("task", "model", "eval", *sections, jobs=jobs)
        found["model"]["files"] = self._fingerprint
        return found

    def _unchanged(self, stage: str, manifest: Mapping[str, Any]) -> bool:
        """Whether a manifest has the current settings for a stage, or for all of them ("all")."""
        now = self.settings(*({stage} & set(STAGES)))
        return all(manifest.get("settings", {}).get(section) == values for section, values in now.items())

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.config.model.source)

    def _identity(self, stage: str, seed: int, arm: str | None = None) -> dict[str, Any]:
        """What decides the result of a stage, or of a baseline, for a seed."""
        found = {**self.settings(stage, jobs=False), "seed": seed}
        found["methods"] = {one: STAGES[one].method for one in (*STAGES[stage].after, stage)}
        if stage == "rl" and arm not in (None, "rl"):
            ignored = BASELINES.get(arm).ignores
            found["rl"] = {name: value for name, value in found["rl"].items() if name not in ignored}
        return found

    def key(self, job: Job) -> dict[str, Any]:
        identity = self._identity(job.stage, job.seed, job.arguments.get("arm"))
        return {**identity, "job": job.name, "arguments": job.arguments}

    def done(self, job: Job) -> bool:
        if not (self.store / "parts").exists():
            return False
        path = self.part(job) / "key.json"
        return path.exists() and read_json(path) == self.key(job)

    def finish(self, job: Job, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write a job's part, completely or not at all."""

        def write(folder: Path) -> None:
            folder.mkdir()
            for name, frame in tables.items():
                if len(frame):
                    frame.to_parquet(folder / f"{name}.parquet", index=False)
            write_json(folder / "key.json", self.key(job))

        write_whole(self.part(job), write)

    def part(self, job: Job) -> Path:
        """The folder of a job's part; like a checkpoint's, its name ends in a mark of what decides it."""
        return self.store / "parts" / f"{job.name}-{digest(self.key(job))[:8]}"

    # ---- checkpoints -------------------------------------------------------------------------------

    def checkpoints(self, seed: int, arm: str = "sft", from_step: int | None = None) -> Path:
        """The folder in which an arm's checkpoints lie, as checkpoint-STEP.

        Its name ends in a mark of what decides the weights, so that those of other settings are never taken for these.
        """
        stage, name = ("sft", arm) if from_step is None else ("rl", f"{arm}-from-{from_step}")
        decisive = self._identity(stage, seed, arm)
        decisive.pop("eval")
        return self.store / "checkpoints" / f"seed-{seed}" / f"{name}-{digest(decisive)[:8]}"

    def sft_weights(self, seed: int, step: int) -> Path:
        """The weights after `step` steps of SFT; step 0 is the base model."""
        return model_folder(self.config.model.source) if step == 0 else self.checkpoints(seed) / f"checkpoint-{step}"

    def arm_weights(self, seed: int, arm: str, from_step: int, update: int | None = None) -> Path:
        """The weights of RL or of a baseline after an update, by default its last."""
        return self.checkpoints(seed, arm, from_step) / f"checkpoint-{update or self.config.rl.steps}"

    @contextmanager
    def lock(self, name: str = ".lock") -> Iterator[None]:
        """Sole right to write into the folder; Busy if another process has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / name)
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(
                f"another run is writing into {self.folder}: wait for it, or choose another folder with `out`"
            ) from None
        except OSError as error:
            raise clear_error(error, self.folder) from None
        try:
            for left in (self.store / "parts").rglob(".????????-*"):  # of killed processes, on any machine
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    # ---- manifest, reference, what notebooks keep --------------------------------------------------

    def note(self, stage: str, wall_s: float, peak_mib: float) -> None:
        """Write into the manifest that (a part of) a stage was measured just now; times of several parts add up."""
        old, settings, machine = Results(self.folder).manifest, self.settings(), describe_machine()
        stages = {name: about for name, about in old.get("stages", {}).items() if self._unchanged(name, old)}
        before = stages.get(stage, {})
        if before.get("tree") != machine["tree"]:
            before = {}
        stages[stage] = {
            "wall_s": round(before.get("wall_s", 0) + wall_s, 1),
            "peak_mib": round(max(before.get("peak_mib", 0), peak_mib)),
            **({"method": STAGES[stage].method} if stage in STAGES else {}),
            **{name: machine[name] for name in ("written", "git", "tree")},
        }
        manifest = {"preset": self.config.preset, "seeds": self.config.seeds, "settings": settings}
        manifest["splits"] = self.splits.as_dict()
        write_json(self.folder / "manifest.json", {**manifest, **machine, "stages": stages})

    def reference(self, stage: str) -> Path | None:
        """The folder of the committed run of the same name, if it holds this stage with these settings and seeds."""
        if not self.config.machine.reference:
            return None
        committed = Results(outputs_folder() / self.config.preset)
        return committed.folder if committed.holds(stage, self.settings(stage), self.config.seeds) else None

    @property
    def own(self) -> bool:
        """Whether this run's own folder holds everything that was loaded, so that results may be written there."""
        return bool(self.sources) and not self.borrowed

    def figure(self, figure: Any, name: str) -> Any:
        """Keep a matplotlib figure as PNG and SVG in the run's folder, if what it shows was measured there."""
        if self.own:
            write_figure(self.folder, figure, name)
        return figure

    def text(self, name: str, text: str) -> None:
        """Keep a small text file in the run's folder, if what it says was measured there."""
        if self.own:
            write_text(self.folder / name, text)


def merge(folders: list[Path], out: Path) -> Results:
    """Put the tables of runs that differ in their seeds alone into a new folder, as one run of all these seeds.

    For seeds that were measured apart, on machines without a common disk. The manifest says of each run which
    seeds it had and what measured it; a stage's times add up. Of a stage that not all of them have the rows are kept;
    it says whose, and does not count as done. ValueError, one line, for what is no finished run, for runs that differ
    in more than their seeds, and for seeds that occur twice.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds something already: choose another folder")
    if len(folders) < 2:
        raise ValueError("merge: give the folders of at least two runs")
    runs = [Results(folder) for folder in folders]
    manifests = [run.manifest for run in runs]
    seeds: set[int] = set()
    for run, manifest in zip(runs, manifests, strict=True):
        own, measured = set(manifest.get("seeds", [])), run.table("measurements")
        stages = {stage: note for stage, note in manifest.get("stages", {}).items() if stage in STAGES}
        if not stages or any(
            set(measured.loc[measured["stage"] == stage, "seed"]) != set(note.get("seeds") or own)
            for stage, note in stages.items()
        ):
            raise ValueError(f"{run.folder} holds no finished run: not all of its stages and seeds are in its tables")
        if twice := seeds & own:
            raise ValueError(f"{run.folder}: seed {min(twice)} is measured in another of these runs too")
        seeds |= own
    (first, model), *others = zip(runs, manifests, strict=True)
    for run, manifest in others:
        both = model["stages"].keys() & manifest["stages"].keys()
        facts = [_facts(m, both) for m in (model, manifest)]
        for name in dict.fromkeys((*facts[0], *facts[1])):
            one, other = (of.get(name, "not known") for of in facts)
            if one != other:
                raise ValueError(f"{run.folder}: {name} is {shown(other)}, in {first.folder} {shown(one)}")
    tables = {name: [r.table(name) for r in runs if (r.folder / file).exists()] for name, file in TABLES.items()}
    shared = ("settings", "splits")

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, frames in tables.items():
            if frames:
                write_table(folder / TABLES[name], pd.concat(frames, ignore_index=True))
        stages = {}
        for stage in dict.fromkeys(stage for m in manifests for stage in m["stages"]):
            notes = {i: m["stages"][stage] for i, m in enumerate(manifests) if stage in m["stages"]}
            having = sorted(seed for i, note in notes.items() for seed in note.get("seeds") or manifests[i]["seeds"])
            about = {name: value for name, value in next(iter(notes.values())).items() if name != "seeds"}
            stages[stage] = {
                **about,
                "wall_s": round(sum(note.get("wall_s", 0) for note in notes.values()), 1),
                "peak_mib": max(note.get("peak_mib", 0) for note in notes.values()),
                **({} if having == sorted(seeds) else {"seeds": having}),
            }
        settings = {
            section: next((m["settings"][section] for m in manifests if section in m["stages"]), values)
            for section, values in model["settings"].items()
        }
        heads = [head for m in manifests for head in m.get("runs", [{n: v for n, v in m.items() if n not in shared}])]
        write_json(
            folder / "manifest.json",
            {**model, "seeds": sorted(seeds), "settings": settings, "stages": stages, "runs": heads},
        )

    write_whole(out, write)
    return Results(out)


def _facts(manifest: Mapping[str, Any], stages: Collection[str]) -> dict[str, Any]:
    """What runs that are merged must have in common, by name: the settings and methods of these stages, and the splits.

    Not where the model lay, for its files' fingerprint is among the settings.
    """
    used = {section for stage in stages if stage in STAGES for section in (*STAGES[stage].after, stage)}
    settings = {
        f"{section}.{name}": value
        for section, values in manifest.get("settings", {}).items()
        if section in used or section not in STAGES
        for name, value in values.items()
    }
    settings.pop("model.source", None)
    methods = {
        f"the method of {name}": about.get("method")
        for name, about in manifest.get("stages", {}).items()
        if name in STAGES and name in stages
    }
    return {**settings, "splits": manifest.get("splits"), **methods}
