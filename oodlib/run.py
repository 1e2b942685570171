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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from oodlib.config import Config, config_from, outputs_folder
from oodlib.io import (
    COLUMNS,
    clear_error,
    digest,
    read_json,
    read_table,
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
from oodlib.results import TABLES, Results, peak_steps
from oodlib.tasks import Splits, Task, get_task


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


class Busy(RuntimeError):
    """Another process is writing into the run's folder."""


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
        """The SFT step of a seed's headline (OOD) peak: see `results.peak_steps`. RuntimeError if it is gone."""
        peaks = peak_steps(self.table("measurements"), self.splits)
        if seed not in peaks:
            raise RuntimeError(
                f"{self.folder} holds no SFT measurements of seed {seed}. If it was removed or changed while this ran, "
                "give the same command again"
            )
        return int(peaks[seed])

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
