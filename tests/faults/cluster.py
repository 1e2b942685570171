"""The row `ray`: a worker of a Ray cluster killed in the middle; the tables must equal those of a local run."""

import contextlib
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import small


def ray(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """Stages on a cluster that is started here, with a worker killed at a random moment."""
    if find_spec("ray") is None:
        return "Ray is not installed: nothing was tried", None
    import running

    took, whole = running.undisturbed("stages")
    moment = np.random.default_rng([seed, number, 3]).uniform(0.3, 1) * took
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        text = (running.prepared() / "small.yaml").read_text().replace("jobs: 1", "jobs: 1, executor: ray")
        for data in ("id.jsonl", "ood.jsonl"):
            (Path(folder) / data).write_text((running.prepared() / data).read_text())
        (Path(folder) / "small.yaml").write_text(text)
        process = small.Forked(small.stages(Path(folder) / "small.yaml", Path(folder) / "out"))
        killer = threading.Thread(target=kill_worker, args=(process.process, moment))
        killer.start()
        ended = process.end(600)
        killer.join()
        return f"a worker killed after {moment:.1f} s", ended.fault((0,)) or small.difference(
            whole, small.files(Path(folder) / "out")
        )


def kill_worker(process: int, moment: float) -> None:
    """SIGKILL for a worker that has a job, as soon as there is one after the moment."""
    end = time.monotonic() + 300
    time.sleep(moment)
    while time.monotonic() < end and psutil.pid_exists(process):
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(process).children(recursive=True):
                if "".join(one.cmdline()).startswith("ray::") and "/seed-" in "".join(one.cmdline()):
                    one.kill()
                    return
        time.sleep(0.05)
