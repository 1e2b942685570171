"""A run: a folder of measurements, filled by independent jobs, each of which is done whole or not at all.

    outputs/tiny/
        manifest.json          parameters, seeds, versions, hardware, time and memory a stage
        measurements.csv       stage, arm, from_step, step, seed, split, metric, value, n
        hands.parquet          the outcome of every problem in every evaluation
        rollouts.parquet       reward and advantage of every RL sample
        rotation.parquet       singular values and angles of every weight matrix
        scorecard.json, figures/, notebooks/
        parts/                 what each job measured; the tables above are put together from these
        checkpoints/           weights; never committed

A job is done when its part lies in parts/ with the key (parameters, seed, code) that it would have now.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from filelock import FileLock, Timeout

from oodlib.presets import ROOT, Preset, digest, preset_from
from oodlib.provenance import code_digest, describe_machine

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


class Run:
    """A preset and the folder that holds its results."""

    def __init__(self, preset: Preset, folder: Path | None = None):
        self.preset = preset
        self.folder = Path(folder) if folder else preset.folder()
        self.sources: dict[str, Path] = {}

    @classmethod
    def start(cls, namespace: Mapping[str, Any]) -> Run:
        """The run that a notebook's variables describe. Says where its results lie."""
        again = any(isinstance(value, Run) for value in namespace.values())
        run = cls(preset_from(namespace, ignore_unknown=again))
        print(
            f"preset {run.preset.preset}, seed {', '.join(map(str, run.preset.seeds))}; results in {run.folder}"
        )
        return run

    # ---- tables ------------------------------------------------------------------------------------

    def table(self, name: str, stage: str | None = None) -> pd.DataFrame:
        """A table of `TABLES`, of all stages or one, from this run or from the reference where that was loaded."""
        stages = [stage] if stage else sorted(self.sources) or [""]
        frames = []
        for one in stages:
            path = self.sources.get(one, self.folder) / TABLES[name]
            if path.exists():
                frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
                frames.append(frame[frame["stage"] == one] if one else frame)
        if not frames:
            return pd.DataFrame(columns=COLUMNS)
        return pd.concat(frames, ignore_index=True)

    def collect(self) -> None:
        """Put the run's tables together from the parts of its finished jobs."""
        parts = sorted(p.parent for p in (self.folder / "parts").rglob("key.json"))
        for name, file in TABLES.items():
            frames = [
                pd.read_parquet(p / f"{name}.parquet") for p in parts if (p / f"{name}.parquet").exists()
            ]
            if frames:
                frame = pd.concat(frames, ignore_index=True)
                text = [c for c in frame.select_dtypes(["object", "str"]) if c != "prompt"]
                if file.endswith(".csv"):
                    write_whole(self.folder / file, lambda p, f=frame: f.to_csv(p, index=False))
                else:
                    frame = frame.astype(dict.fromkeys(text, "category"))
                    write_whole(
                        self.folder / file,
                        lambda p, f=frame: f.to_parquet(
                            p, index=False, compression="zstd", compression_level=15
                        ),
                    )

    # ---- jobs --------------------------------------------------------------------------------------

    def key(self, job: Job) -> dict[str, Any]:
        upto = {"sft": ("sft",), "rl": ("sft", "rl")}.get(job.stage, ("sft", "rl", "rotation", "surgery"))
        parameters = {**self.preset.parameters(*upto), "seed": job.seed}
        return {"parameters": parameters, "job": job.name, "arguments": job.arguments, "code": code_digest()}

    def done(self, job: Job) -> bool:
        path = self.folder / "parts" / job.name / "key.json"
        return path.exists() and json.loads(path.read_text()) == self.key(job)

    def finish(self, job: Job, tables: Mapping[str, pd.DataFrame]) -> None:
        """Lay down a job's part, whole or not at all."""

        def write(folder: Path) -> None:
            folder.mkdir()
            for name, frame in tables.items():
                frame.to_parquet(folder / f"{name}.parquet", index=False)
            (folder / "key.json").write_text(json.dumps(self.key(job), indent=1))

        write_whole(self.folder / "parts" / job.name, write)

    def checkpoint(self, seed: int, arm: str = "sft", from_step: int | None = None) -> Path:
        """The folder in which an arm's checkpoints lie, as checkpoint-STEP."""
        name = arm if from_step is None else f"{arm}-from-{from_step}"
        return self.folder / "checkpoints" / f"seed-{seed}" / name

    @contextmanager
    def lock(self, name: str = ".lock") -> Iterator[None]:
        """Sole right to write into the folder; RuntimeError if another process has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / name)
            lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(
                f"another run is writing into {self.folder}: wait for it, or choose another folder with `out`"
            ) from None
        except OSError as error:
            raise clear_error(error, self.folder) from None
        try:
            yield
        finally:
            lock.release()

    def note(self, stage: str, facts: Mapping[str, Any]) -> None:
        """Write what the manifest says of the run, with `facts` about one stage added."""
        path = self.folder / "manifest.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        stages = old.get("stages", {}) if old.get("parameters") == self.preset.parameters() else {}
        manifest = {
            "preset": self.preset.preset,
            "parameters": self.preset.parameters(),
            "seeds": self.preset.seeds,
            **describe_machine(),
            "stages": {**stages, stage: {**stages.get(stage, {}), **facts}},
        }
        write_whole(path, lambda p: p.write_text(json.dumps(manifest, indent=1) + "\n"))

    def reference(self) -> Path | None:
        """The committed reference run with the same parameters and seeds, if there is one."""
        folder = ROOT / "outputs" / self.preset.preset
        path = folder / "manifest.json"
        if not path.exists():
            return None
        manifest = json.loads(path.read_text())
        same = manifest["parameters"] == self.preset.parameters() and manifest["seeds"] == self.preset.seeds
        return folder if same else None

    def figure(self, figure: Any, name: str) -> Any:
        """Keep a matplotlib figure as PNG and SVG in the run's folder (not where the reference is shown)."""
        if self.folder not in (s for s in self.sources.values()):
            return figure
        target = self.folder / "figures"
        target.mkdir(parents=True, exist_ok=True)
        for kind in ("png", "svg"):
            write_whole(target / f"{name}.{kind}", lambda p, k=kind: figure.savefig(p, format=k))
        return figure


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
    temporary = path.parent / f".{uuid.uuid4().hex[:8]}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        if temporary.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise clear_error(error, path.parent) from None
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
