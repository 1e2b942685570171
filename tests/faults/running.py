"""Rows about work that is disturbed: killed at a random moment, no room or no folder, several on one folder."""

import atexit
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import small

from oodlib.config import CHECKOUT

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def prepared() -> Path:
    """A folder with the presets, and a finished run to read."""
    return prepared_in()[0]


@cache
def prepared_in() -> tuple[Path, float]:
    """That folder, and how long the run took (s)."""
    small.load()
    folder, start = Path(tempfile.mkdtemp(prefix="faults-")), time.monotonic()
    ended = small.Forked(small.stages(small.preset(folder), folder / "run")).end()
    assert ended.status == 0, ended.said
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder, time.monotonic() - start


def targets() -> dict[str, Callable[[Path], Callable[[], object]]]:
    """What writes, by name: a function of the folder to write into."""
    given = prepared()
    (seed,) = (given / "run/checkpoints").iterdir()
    end = next(seed.glob("sft-*/checkpoint-4"))
    return {
        "stages": lambda out: small.stages(given / "small.yaml", out),
        "sweep": lambda out: small.command("sweep", "explore", "--plan", given / "plan.yaml", "--out", out),
        "compare": lambda out: small.command("compare", "tiny", end, "--out", out, "--modules", "mlp.*"),
        "restore": lambda out: small.command("restore", end, "tiny", "--out", out, "--layers", "0"),
        "notebooks": lambda out: small.command("notebooks", out),
        "base": lambda out: small.command("base", out, "--steps", "1"),
        "merge": lambda out: small.command("merge", given / "run", other_seed(), "--out", out),
        "report": lambda out: small.command("report", CHECKOUT / "outputs/tiny", "--out", out / "report.html"),
        "reproduce": lambda out: small.command("reproduce", "--preset", given / "small.yaml", "--out", out),
    }  # fmt: skip


WEIGHTS = {  # how often each is taken
    **{"stages": 12, "sweep": 4, "compare": 4},
    **dict.fromkeys(("restore", "notebooks", "base", "merge", "report"), 2),
    "reproduce": 1,  # takes a minute or two
}
TIMED = {"reproduce": (".ipynb", ".html")}  # files of a target that say how long it took


@cache
def other_seed() -> Path:
    """A finished run as the prepared one, of another seed."""
    folder = prepared() / "other"
    ended = small.Forked(small.stages(prepared() / "small.yaml", folder, seed=11)).end()
    assert ended.status == 0, ended.said
    return folder


def left_in(out: Path, target: str) -> dict[str, bytes | None]:
    """The files that a target left, without the content of those that say how long it took."""
    return small.files(out, TIMED.get(target, ()))


@cache
def undisturbed(target: str) -> tuple[float, dict[str, bytes | None]]:
    """How long a target takes (s), and the files that it leaves."""
    if target == "stages":
        return prepared_in()[1], small.files(prepared() / "run")
    out = Path(tempfile.mkdtemp(prefix="faults-")) / "out"
    function, start = targets()[target](out), time.monotonic()
    ended = small.Forked(function).end()
    assert ended.status == 0, f"{target}: {ended.said}"
    took, left = time.monotonic() - start, left_in(out, target)
    shutil.rmtree(out.parent)
    return took, left


def chosen(seed: int, number: int, row: int) -> tuple[np.random.Generator, str]:
    rng = np.random.default_rng([seed, number, row])
    names = [name for name, times in WEIGHTS.items() for _ in range(times)]
    return rng, str(rng.choice(names))


def kill(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """SIGKILL at a random moment; the same command again must leave what an undisturbed one does."""
    rng, target = chosen(seed, number, 0)
    took, whole = undisturbed(target)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        out, moment = Path(folder) / "out", rng.uniform(0, took)
        process = small.Forked(targets()[target](out))
        time.sleep(moment)
        os.kill(process.process, signal.SIGKILL)
        process.end()
        again = small.Forked(targets()[target](out)).end()
        fault = again.fault() or small.difference(whole, left_in(out, target))
    return f"{target} after {moment:.2f} of {took:.2f} s", fault


def disk(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """No room, or no folder, at a random write: one line; with room again, it goes on to the same end."""
    rng, target = chosen(seed, number, 1)
    took, whole = undisturbed(target)
    ways = ["file size", "removed", *(["full", "read-only"] if ROOT else [])]
    way, part = str(rng.choice(ways)), rng.uniform(0.02, 0.98)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        out = Path(folder) / "disk" / "out"
        out.parent.mkdir()
        if way in ("full", "read-only"):
            kib = int(64 * 625**part) if way == "full" else 2**20  # up to 40 MB
            mount("-t", "tmpfs", "-o", f"size={kib}k", "none", out.parent)
        try:
            process = small.Forked(
                limited(targets()[target](out), part) if way == "file size" else targets()[target](out)
            )
            if way in ("removed", "read-only"):
                time.sleep(part * took)
                if way == "removed":
                    shutil.rmtree(out, ignore_errors=True)
                else:
                    read_only(out.parent)
            ended = process.end()
            fault = ended.fault()
            if way in ("full", "read-only"):
                mount("-o", "remount,rw,size=1g", out.parent)
            if not fault:
                again = small.Forked(targets()[target](out)).end()
                fault = again.fault() or small.difference(whole, left_in(out, target))
                fault = fault and f"after {ended.said[-300:]!r}: {fault}"
        finally:
            if way in ("full", "read-only"):
                subprocess.run(["umount", "-l", out.parent], check=True)
    return f"{target}, {way} {part:.2f}", fault


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def read_only(folder: Path) -> None:
    """As soon as no file is open for writing, which a file system that turns read-only by itself does not wait for."""
    for _ in range(2000):
        if not subprocess.run(["mount", "-o", "remount,ro", folder], capture_output=True).returncode:
            return
        time.sleep(0.002)


def limited(function: Callable[[], object], part: float) -> Callable[[], object]:
    """The function, where no file may be larger than a share of the largest (4 MB), on a logarithmic scale."""

    def call() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        bytes_ = int(4_000_000**part)
        said = os.fstat(1).st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_ + said + 20_000, resource.RLIM_INFINITY))
        function()

    return call


def crowd(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """Two to eight at once on one folder: one works, the others say so, and nothing is mixed."""
    rng = np.random.default_rng([seed, number, 2])
    target, n = ("stages", "sweep", "stages", "compare")[number % 4], int(rng.integers(2, 9))
    _, whole = undisturbed(target)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        out = Path(folder) / "out"
        processes = []
        for _ in range(n):
            processes.append(small.Forked(targets()[target](out)))
            time.sleep(rng.choice([0, 0, 0.05, 0.3]))
        ends = [process.end() for process in processes]
        worked = sum(ended.status == 0 for ended in ends)
        silent = [e.said[-300:] for e in ends if e.status == 2 and "another" not in e.said]
        fault = next((fault for e in ends if (fault := e.fault())), None)
        fault = fault or (f"they say something else: {silent}" if silent else None if worked else "none worked")
        fault = fault or small.difference(whole, left_in(out, target))
    return f"{n} of {target}, {worked} ended well", fault
