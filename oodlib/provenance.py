"""Where a number came from: code, package versions, machine, and how much memory and time it took."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import threading
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "scipy", "pandas")
# A change in these makes no measurement stale.
PLUMBING = (  # a job's key holds what they decide, or nothing in a run hangs on it
    "campaign.py",
    "checkpoints.py",  # a run's own folders hold one file, with one naming: what it reads of them cannot differ
    "cluster.py",
    "pairing.py",
    "presets.py",
    "provenance.py",
    "runs.py",
    "stages.py",
)
SHOWING = (
    "bench.py",
    "claims.py",
    "cli.py",
    "cli_plan.py",
    "cli_weights.py",
    "comparing.py",
    "dissect.py",
    "evidence.py",
    "exercises",
    "figures.py",
    "figures_campaign.py",
    "figures_compare.py",
    "figures_weights.py",
    "figures_widgets.py",
    "fitting.py",
    "healing.py",
    "keeping.py",
    "lecture.py",
    "lens.py",
    "model_surgery.py",
    "planning.py",
    "plotting.py",
    "report.py",
    "report_html.py",
    "saying.py",
    "sizes.py",
    "stats.py",
    "widget_parts.py",
    "widgets.py",
)


@cache
def code_digest() -> str:
    """A hash of the code and of the shipped base model that measurements depend on."""
    total = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.safetensors")]):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in (*PLUMBING, *SHOWING):
            total.update(name.as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


def describe_machine() -> dict[str, Any]:
    """Git revision, package versions and hardware, for the manifest."""
    import torch  # late: it takes seconds, and what only reads results does without

    memory = psutil.virtual_memory().total / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_revision(),
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(memory, 1),
            "gpu": gpu,
            "system": platform.system(),
        },
    }


def _git_revision() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        edited = git("status", "--porcelain", "--", str(PACKAGE))
        return git("rev-parse", "HEAD") + (" with changes in oodlib" if edited else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class Meter:
    """Wall time (s) and peak resident memory (MiB) of this process with its children, while in the `with` block."""

    def __enter__(self) -> Meter:
        self.peak_mib, self.start = 0.0, time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.start

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)
