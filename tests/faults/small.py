"""What the rows share: a run of a few seconds, the command in a forked process, and what must hold afterwards."""

import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

PRESET = """\
like: smoke
task: {name: jsonl, options: {id: id.jsonl, ood: ood.jsonl, checker: number}, max_new_tokens: 4}
sft: {steps: 4, checkpoints: [0, 2, 4], batch_size: 4, warmup_steps: 1}
rl: {starts: [4], steps: 2, prompts: 2, samples: 2, updates_per_batch: 1, baselines: [averaging], warmup_steps: 1}
surgery: {shares: [1.0], tail_shares: [], layers: [], words: [], embeddings: false, draws: 0}
machine: {reference: false, jobs: 1}
"""
PLAN = """\
like: {preset}
conditions: {{plain: {{why: nothing}}}}
blocks: {{main: {{conditions: [plain], starts: [4], baselines: []}}}}
phases: {{explore: {{seeds: [0], blocks: [main]}}}}
"""
TABLES = (".csv", ".parquet", ".npz", ".html", ".ipynb", ".safetensors")


def preset(folder: Path) -> Path:
    """Writes the small preset, its data and a plan of a sweep into a folder; the preset's file."""
    for split, numbers in (("id", (2, 3, 4)), ("ood", (11, 12, 13))):
        lines = (f'{{"prompt": "{n} + 1 = ", "completion": "{n + 1}", "answer": {n + 1}}}\n' for n in numbers)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    (folder / "small.yaml").write_text(PRESET)
    (folder / "plan.yaml").write_text(PLAN.format(preset=folder / "small.yaml"))
    return folder / "small.yaml"


@dataclass
class Ended:
    """How a process ended: its exit status (None: killed), and what it said."""

    status: int | None
    said: str

    def fault(self, allowed: tuple[int | None, ...] = (0, 2)) -> str | None:
        """A traceback, or another exit status than those allowed, or an error of several lines."""
        if "Traceback (most recent call last)" in self.said or self.status not in allowed:
            return f"status {self.status}: {self.said[-1500:]}"
        errors = [line for line in self.said.splitlines() if line.startswith("error:")]
        return f"no error line: {self.said[-500:]}" if self.status == 2 and len(errors) != 1 else None


class Forked:
    """A function in a forked process, which has the libraries loaded and one core; exits as the command does."""

    def __init__(self, function: Callable[[], object]):
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = os.fork()
        if self.process:
            return
        status = 1
        try:
            for stream in (1, 2):
                os.dup2(self.said.fileno(), stream)
            if hasattr(os, "sched_setaffinity"):  # the number of threads follows from it
                os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
            torch.set_num_threads(1)
            sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
            function()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)

    def end(self, limit: float = 300) -> Ended:
        """Waits for it; RuntimeError for one that hangs."""
        end = time.monotonic() + limit
        while not (ended := os.waitpid(self.process, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(self.process, 9), os.waitpid(self.process, 0)
                raise RuntimeError(f"hangs for more than {limit} s")
            time.sleep(0.01)
        self.said.seek(0)
        return Ended(os.waitstatus_to_exitcode(ended[1]) if os.WIFEXITED(ended[1]) else None, self.said.read())


def command(*words: object) -> Callable[[], object]:
    """The command line as a function, to be forked."""

    def call() -> None:
        from oodlib.cli import app

        app([str(word) for word in words])

    return call


def stages(file: Path, folder: Path, **changes: object) -> Callable[[], object]:
    """All stages of a preset, changed, into a folder; an error is told as the command tells it."""

    def call() -> None:
        from oodlib.config import load_config
        from oodlib.run import STAGES, Run
        from oodlib.stages import ensure

        try:
            ensure(Run(load_config(file, {"out": str(folder), **changes})), *STAGES)
        except (ValueError, RuntimeError, OSError) as error:
            print(f"error: {error}")
            sys.exit(2)

    return call


def load() -> None:
    """Import what the stages need, once, before anything is forked."""
    import oodlib.cli
    import oodlib.inference.evaluation
    import oodlib.report
    import oodlib.spectral.comparison
    import oodlib.spectral.stage
    import oodlib.tasks.jsonl
    import oodlib.training.arms
    import oodlib.training.sft  # noqa: F401


def files(folder: Path, but: tuple[str, ...] = ()) -> dict[str, bytes | None]:
    """Every file under a folder; of tables and weights the content, if they have none of the endings `but`."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_file())
    endings = {*TABLES} - {*but}
    return {str(p.relative_to(folder)): p.read_bytes() if p.suffix in endings else None for p in found}


def difference(one: dict[str, bytes | None], other: dict[str, bytes | None]) -> str | None:
    """Files that are in one alone, or of other content."""
    alone = sorted({name for name in one.keys() ^ other.keys() if not name.endswith(".lock")})
    changed = sorted(name for name in one.keys() & other.keys() if one[name] != other[name])
    return f"in one alone: {alone}; different: {changed}" if alone or changed else None
