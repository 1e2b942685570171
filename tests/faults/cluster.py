"""The row `ray`: a worker or a node of a Ray cluster killed in the middle; the tables must equal a local run's."""

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import small

NODES: list[subprocess.Popen[bytes]] = []  # with room for jobs


def ray(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """Stages on a cluster of two nodes, with a worker that has a job, or its whole node, killed in the middle."""
    if find_spec("ray") is None:
        raise SystemExit('Ray is not installed: pip install "oodlib[ray]"')
    import running

    _, whole = running.undisturbed("stages")
    rng = np.random.default_rng([seed, number, 3])
    jobs = sum(name.endswith("key.json") for name in whole)
    way, done, killed = str(rng.choice(["worker", "node"])), int(rng.integers(jobs)), []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        process = stages(Path(folder))
        killer = threading.Thread(target=kill, args=(process.process, Path(folder), way, done, rng.uniform(), killed))
        killer.start()
        ended = process.end(600)
        killer.join()
        fault = ended.fault((0,)) or small.difference(whole, small.files(Path(folder) / "out"))
    return f"a {way} killed when {done} of {jobs} jobs were done: {killed[0] if killed else 'none was left'}", fault


def stages(folder: Path) -> small.Forked:
    """The stages of the small preset on the cluster, into the sub-folder `out`."""
    import running

    address, given = head(), running.prepared()
    text = (given / "small.yaml").read_text()
    text = text.replace("jobs: 1", f"jobs: 1, executor: ray, ray_address: '{address}'")
    for data in ("id.jsonl", "ood.jsonl"):
        (folder / data).write_text((given / data).read_text())
    (folder / "small.yaml").write_text(text)
    while len(NODES) < 2:
        NODES.append(start(f"--address={address}", "--num-cpus=1", "--object-store-memory=80000000"))
        while not any("Agent" in name for _, name in children(NODES[-1])):  # two that join at once share a socket
            time.sleep(0.1)
        time.sleep(3)
    return small.Forked(small.stages(folder / "small.yaml", folder / "out"))


def kill(process: int, folder: Path, way: str, done: int, wait: float, killed: list[str]) -> None:
    """SIGKILL for a worker that has a job, or for its node, so many jobs and seconds after the start."""
    while psutil.pid_exists(process):
        if len(list(folder.glob("out/parts/**/key.json"))) >= done:
            time.sleep(wait)
            wait = 0.0
            for node in NODES:
                for one, name in children(node):
                    if name.startswith("ray::") and "/" in name:  # a job's name; those of Ray itself have no slash
                        killed.append(name.strip())
                        one.kill() if way == "worker" else end(node)
                        return
        time.sleep(0.02)


def children(process: subprocess.Popen[bytes]) -> list[tuple[psutil.Process, str]]:
    """What a process started, and what that started, with their command lines."""
    found = []
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append((one, " ".join(one.cmdline())))
    return found


@cache
def head() -> str:
    """The address of a cluster that has no room for jobs itself; it ends with this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster for this machine alone
    words = ("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(end, start(*words))
    atexit.register(lambda: [end(node) for node in [*NODES]])
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"127.0.0.1:{port}"
        time.sleep(0.1)
    raise RuntimeError("no Ray cluster starts here")


def start(*words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a node and all that it started."""
    if process in NODES:
        NODES.remove(process)
    for one in [*(one for one, _ in children(process)), process]:
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.wait()
