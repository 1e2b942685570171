"""Where a number came from: code, package versions, machine, and how much memory and time it took."""

from __future__ import annotations

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


def describe_code() -> dict[str, str]:
    """The commit, and the hash of oodlib's tree in it, which a rewritten history keeps; "unknown" outside of git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(PACKAGE), *words]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()

    try:
        edited = " with changes in oodlib" if git("status", "--porcelain", "--", str(PACKAGE)) else ""
        return {"git": git("rev-parse", "HEAD") + edited, "tree": git("rev-parse", "HEAD:oodlib") + edited}
    except (OSError, subprocess.CalledProcessError):
        return {"git": "unknown", "tree": f"oodlib {version('oodlib')}"}


def describe_machine() -> dict[str, Any]:
    """Code, package versions and hardware, for the manifest."""
    import torch  # late: it takes seconds, and what only reads results does without

    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_code(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.system(),
        },
    }


@cache
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
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
