"""A run: a folder of measurements, filled by independent jobs, each of which is done whole or not at all.

    outputs/tiny/
        manifest.json          parameters, seeds, versions, hardware, time and memory a stage
        measurements.csv       stage, arm, from_step, step, seed, split, metric, value, n
        hands.parquet          the outcome of every problem in every evaluation
        rollouts.parquet       answer, outcome, reward and advantage of every RL sample
        rotation.parquet       singular values and angles of every weight matrix
        scorecard.json, figures/, notebooks/
        parts/                 what each job measured; the tables above are put together from these
        checkpoints/           weights; never committed

A job is done when its part lies in parts/ with the key (parameters, seed, code) that it would have now.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from oodlib.presets import EVALUATION, INDEPENDENT, ROOT, Preset, digest, preset_from
from oodlib.provenance import code_digest, describe_machine

UPTO = {  # whose parameters a stage's results depend on, by prefix
    "sft": ("sft",),
    "rl": ("sft", "rl"),
    "rotation": ("sft", "rl", "rotation"),
    "surgery": ("sft", "surgery"),
}
KEYS = ["stage", "arm", "from_step", "step", "seed", "split"]
COLUMNS = [*KEYS, "metric", "value", "n"]
TABLES = {
    "measurements": "measurements.csv",
    "hands": "hands.parquet",
    "rollouts": "rollouts.parquet",
    "rotation": "rotation.parquet",
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
    """A preset and the folder that holds its results."""

    def __init__(self, preset: Preset, folder: Path | None = None, store: Path | None = None):
        self.preset = preset
        self.folder = Path(folder) if folder else preset.folder()
        self.store = store or self.folder  # where parts and checkpoints lie; several runs may share one
        self.sources: dict[str, Path] = {}  # stage -> the folder whose tables are read
        self.borrowed: set[str] = set()  # stages read from the committed reference run

    @classmethod
    def start(cls, namespace: Mapping[str, Any], besides: tuple[str, ...] = ()) -> Run:
        """The run that a notebook's variables describe, but for those `besides`. Says where its results lie."""
        again = any(isinstance(value, Run) for value in namespace.values())
        mine = {name: value for name, value in namespace.items() if name not in besides}
        run = cls(preset_from(mine, ignore_unknown=again))
        print(f"preset {run.preset.preset}, seed {', '.join(map(str, run.preset.seeds))}; results in {run.folder}")
        return run

    # ---- tables ------------------------------------------------------------------------------------

    def table(self, name: str, stage: str | None = None) -> pd.DataFrame:
        """A table of `TABLES`, of all stages or one, from this run or from the reference where that was loaded."""
        frames = []
        for one in [stage] if stage else sorted(self.sources) or [None]:
            path = self.sources.get(one, self.folder) / TABLES[name]
            if path.exists():
                frame = read_table(path)
                frames.append(frame[frame["stage"] == one] if one else frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)

    def collect(self, jobs: list[Job]) -> None:
        """Put the run's tables together from the parts of the finished ones among its jobs.

        A stage of which no job is finished keeps the rows it has, if they are of the same parameters.
        """
        finished = [job for job in jobs if self.done(job)]
        renewed = {job.stage for job in finished}
        same = self._manifest().get("parameters") == self.preset.parameters()
        for name, file in TABLES.items():
            parts = [self.part(job) / f"{name}.parquet" for job in finished]
            frames = [pd.read_parquet(part) for part in parts if part.exists()]
            path = self.folder / file
            if same and path.exists():
                old = read_table(path)
                frames.append(old[~old["stage"].isin(renewed) & old["seed"].isin(self.preset.seeds)])
            if frames:
                write_table(path, pd.concat(frames, ignore_index=True))

    # ---- jobs --------------------------------------------------------------------------------------

    def key(self, job: Job) -> dict[str, Any]:
        parameters = self._decisive(job.stage, job.seed, job.arguments.get("arm"))
        return {"parameters": parameters, "job": job.name, "arguments": job.arguments, "code": code_digest()}

    def _decisive(self, stage: str, seed: int, arm: str | None) -> dict[str, Any]:
        """The parameters that decide what a job of a stage measures, or of an arm."""
        found = {**self.preset.parameters(*UPTO[stage]), "seed": seed}
        if stage == "rl":
            found["rl_turns"] = self.preset.turns_in_rl
            skip = (*INDEPENDENT.get(arm, ()), "rl_arms", "rl_from")
            found = {name: value for name, value in found.items() if name not in skip}
        return found

    def done(self, job: Job) -> bool:
        path = self.part(job) / "key.json"
        return path.exists() and json.loads(path.read_text()) == self.key(job)

    def finish(self, job: Job, tables: Mapping[str, pd.DataFrame]) -> None:
        """Lay down a job's part, whole or not at all."""

        def write(folder: Path) -> None:
            folder.mkdir()
            for name, frame in tables.items():
                if len(frame):
                    frame.to_parquet(folder / f"{name}.parquet", index=False)
            (folder / "key.json").write_text(json.dumps(self.key(job), indent=1))

        write_whole(self.part(job), write)

    def part(self, job: Job) -> Path:
        """The folder of a job's part; like a checkpoint's, its name ends in a mark of parameters and code."""
        return self.store / "parts" / f"{job.name}-{digest(self.key(job))[:8]}"

    def checkpoint(self, seed: int, arm: str = "sft", from_step: int | None = None) -> Path:
        """The folder in which an arm's checkpoints lie, as checkpoint-STEP.

        Its name ends in a mark of parameters and code, so that weights of other ones are never taken for these.
        """
        stage, name = ("sft", arm) if from_step is None else ("rl", f"{arm}-from-{from_step}")
        without = EVALUATION if stage == "sft" else () if arm == "interpolation_peak" else EVALUATION[1:]
        decisive = {k: v for k, v in self._decisive(stage, seed, arm).items() if k not in without}
        mark = digest([decisive, code_digest()])[:8]
        return self.store / "checkpoints" / f"seed-{seed}" / f"{name}-{mark}"

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
            for left in (self.store / "parts").rglob(".????????-*"):  # what a killed process was writing
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            lock.release()

    def note(self, stage: str, wall_s: float, peak_mib: float) -> None:
        """Write into the manifest that (a part of) a stage was measured just now; times of several parts add up."""
        old = self._manifest()
        stages = old.get("stages", {}) if old.get("parameters") == self.preset.parameters() else {}
        machine = describe_machine()
        before = stages.get(stage, {})
        if before.get("code") != machine["code"]:
            before = {}
        stages[stage] = {
            "wall_s": round(before.get("wall_s", 0) + wall_s, 1),
            "peak_mib": round(max(before.get("peak_mib", 0), peak_mib)),
            **{name: machine[name] for name in ("written", "git", "code")},
        }
        manifest = {
            "preset": self.preset.preset,
            "seeds": self.preset.seeds,
            "parameters": self.preset.parameters(),
            **machine,
            "stages": stages,
        }
        write_whole(self.folder / "manifest.json", lambda p: p.write_text(json.dumps(manifest, indent=1) + "\n"))

    def _manifest(self) -> dict[str, Any]:
        path = self.folder / "manifest.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def reference(self, stage: str) -> Path | None:
        """The folder of the committed run of the same name, if it holds this stage with these parameters and seeds."""
        committed = Run(self.preset, ROOT / "outputs" / self.preset.preset)
        manifest = committed._manifest()
        mine = self.preset.parameters(*UPTO[stage])
        theirs = manifest.get("parameters", {})
        same = {name: theirs.get(name) for name in mine} == mine and manifest.get("seeds") == self.preset.seeds
        return committed.folder if same and len(committed.table("measurements", stage)) else None

    def reference_is_current(self, stage: str) -> bool:
        """Whether the code that measured the reference's stage is the code at hand."""
        committed = Run(self.preset, ROOT / "outputs" / self.preset.preset)
        return committed._manifest()["stages"].get(stage, {}).get("code") == code_digest()

    @property
    def own(self) -> bool:
        """Whether all that was asked for was measured in this run's folder, so that results may be written."""
        return bool(self.sources) and not self.borrowed

    def figure(self, figure: Any, name: str) -> Any:
        """Keep a matplotlib figure as PNG and SVG in the run's folder, if what it shows was measured there."""
        if self.own:
            write_figure(self.folder, figure, name)
        return figure

    def text(self, name: str, text: str) -> None:
        """Keep a small text file in the run's folder, if what it says was measured there."""
        if self.own:
            write_whole(self.folder / name, lambda p: p.write_text(text))


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)


def write_table(path: Path, frame: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        write_whole(path, lambda p: frame.to_csv(p, index=False, float_format="%.6g"))
        return
    frame = frame.astype(dict.fromkeys(frame.select_dtypes(["object", "string"]), "category"))
    write_whole(path, lambda p: frame.to_parquet(p, index=False, compression="zstd", compression_level=15))


def write_figure(folder: Path, figure: Any, name: str) -> None:
    """Keep a matplotlib figure as PNG and SVG in a run's or the campaign's folder, without date and version."""
    png = as_png(figure)
    write_whole(folder / "figures" / f"{name}.png", lambda p: p.write_bytes(png))
    write_whole(folder / "figures" / f"{name}.svg", lambda p: figure.savefig(p, format="svg", metadata={"Date": None}))


def as_png(figure: Any) -> bytes:
    """A matplotlib figure in 256 colours, at less than half of the size."""
    from PIL import Image  # late, as matplotlib is

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(256, kmeans=1, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def clear_error(error: OSError, folder: Path) -> OSError:
    """The same error, said so that a user knows what to do."""
    reasons = {
        errno.ENOSPC: "no space is left on the disk",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "writing there is not allowed",
    }
    why = reasons.get(error.errno, error.strerror or str(error))
    return OSError(error.errno, f"cannot write into {folder}: {why}; what was there is untouched")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` make a file or a folder under another name, then put it in place of `path` in one step."""
    path = Path(path)
    temporary, old = (path.parent / f".{uuid.uuid4().hex[:8]}-{path.name}" for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if path.is_dir():  # a folder cannot be replaced in one step, but it is never there in part
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        raise clear_error(error, path.parent) from None
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(NotADirectoryError):
            temporary.unlink(missing_ok=True)
