"""Jobs on a Ray cluster: the same results as here, whatever dies."""

import os
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from oodlib.io import read_table
from oodlib.results import TABLES
from oodlib.run import Job
from oodlib.scale import ray as cluster
from oodlib.scale.ray import run_jobs
from oodlib.stages import ensure, work

BASELINES = ["sft_continued", "rejection_sampling", "averaging"]
FAIL = f"{__name__}:fail"


def fail(run, seed):
    """A job that notes its attempt, and fails."""
    with (run.folder / "attempts").open("a", encoding="utf-8") as attempts:
        attempts.write("attempt\n")
    raise ValueError("this is the cause")


def die(run, seed):
    """A job that dies with its worker at the first attempt."""
    with (run.folder / "attempts").open("a", encoding="utf-8") as attempts:
        attempts.write("attempt\n")
    if len(read_attempts(run)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"measurements": pd.DataFrame({"value": [7.0]})}


def read_attempts(run):
    return (run.folder / "attempts").read_text(encoding="utf-8").splitlines()


def on_ray(tiny_run, changes=None, address=None):
    run = tiny_run({"machine.executor": "ray", "machine.ray_address": address, **(changes or {})})
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


@pytest.fixture
def two_nodes():
    """A cluster of a head without room for jobs and two nodes with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    nodes = [made.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


def test_without_ray_the_error_says_what_to_install(tiny_run, monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .*ray"):
        ensure(on_ray(tiny_run), "sft")


@pytest.mark.slow
def test_a_dead_address_is_a_clear_error_in_bounded_time(tiny_run, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "ANSWER_S", 8)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:9.*ray start --head"):
        ensure(on_ray(tiny_run, address="127.0.0.1:9"), "sft")
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_cluster_started_here_shows_a_jobs_own_error_and_repeats_only_a_lost_job(tiny_run, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # a worker imports this file
    run = on_ray(tiny_run)
    with pytest.raises(ValueError, match="this is the cause") as caught:
        list(run_jobs(run, [Job("sft/x", "sft", FAIL, 10)], 1, work))
    assert "in fail" in caught.value.__notes__[0]
    assert read_attempts(run) == ["attempt"], "after its own error it is not run again"
    assert not ray.is_initialized()

    (run.folder / "attempts").unlink()
    job = Job("sft/y", "sft", f"{__name__}:die", 10)
    assert list(run_jobs(run, [job], 1, work)) == [job]
    assert read_attempts(run) == ["attempt", "attempt"]
    assert run.done(job)


@pytest.mark.slow
def test_a_node_dies_and_the_results_are_those_of_a_local_run(tiny_run, tmp_path, two_nodes):
    made, nodes = two_nodes
    changes = {"rl.baselines": BASELINES, "rl.starts": [2, 4], "rl.steps": 8, "machine.jobs": 0}
    here = tiny_run({"out": str(tmp_path / "here"), **changes})
    there = on_ray(tiny_run, {"out": str(tmp_path / "there"), **changes}, made.address)
    ensure(here, "rl")
    ensure(there, "sft")

    cut_off = []

    def kill() -> None:
        """Kill a node with its workers as soon as a job on it has a checkpoint and is not done."""
        raylet = next(one for name, ones in nodes[0].all_processes.items() if name == "raylet" for one in ones)
        end = time.monotonic() + 300
        while not cut_off and time.monotonic() < end:
            time.sleep(0.05)
            workers = psutil.Process(raylet.process.pid).children(recursive=True)
            titles = ["".join(worker.cmdline()) for worker in workers]  # ray::rl/seed-10/averaging-from-2()
            for job in (title.split("/")[-1].removesuffix("()") for title in titles if title.startswith("ray::rl/")):
                whole = list(there.folder.glob(f"checkpoints/seed-10/{job}-*/checkpoint-4/complete"))
                if whole and not list(there.folder.glob(f"parts/rl/seed-10/{job}-*")):
                    cut_off.append(job)
        made.remove_node(nodes[0], allow_graceful=False)
        for worker in workers:
            if worker.is_running():
                worker.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ensure(there, "rl")
    killer.join()

    assert cut_off, "the node died while a job was under way"
    parts = [part.name for part in (there.folder / "parts" / "rl" / "seed-10").iterdir() if part.name[0] != "."]
    assert len(parts) == (1 + len(BASELINES)) * 2
    for file in TABLES.values():
        if (here.folder / file).exists():
            one, other = (read_table(run.folder / file) for run in (here, there))
            pd.testing.assert_frame_equal(one, other, check_exact=True)
