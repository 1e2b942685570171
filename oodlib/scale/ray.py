"""Independent jobs on a Ray cluster: a task a job; one that is lost with its worker or node is run again by Ray."""

from __future__ import annotations

import copy
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from oodlib.provenance import describe_code
from oodlib.run import Job, Run

Work = Callable[[Run, Job, int], Job]
RETRIES = 3  # times that a lost job is run again
ANSWER_S = 25  # a cluster that is there answers within this
SIGHT_S = 120  # a network file system shows within this what another node wrote
CONNECT = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"


def run_jobs(run: Run, jobs: list[Job], threads: int, work: Work) -> Iterator[Job]:
    """Run jobs by work(run, job, threads) on the cluster that `machine` names; yields them as they are done.

    A job's own error is raised as it is, and stops the others. ValueError if Ray is not installed or no node has room
    for a job; RuntimeError if the cluster cannot be reached, a job was lost too often or its results are not seen.
    """
    with _connected(run.config.machine.ray_address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, most = (max((node.get(name, 0) for node in nodes), default=0) for name in ("CPU", "GPU"))
        gpus = run.config.machine.job_gpus if most else 0
        if not cpus or gpus > most:
            raise ValueError(f"a job needs a CPU and {gpus:g} GPUs (job_gpus), and no node of the Ray cluster has both")
        task = ray.remote(num_cpus=min(threads, cpus), num_gpus=gpus, max_retries=RETRIES)(_on_node)
        there = copy.copy(run)
        there.folder, there.store = run.folder.absolute(), run.store.absolute()
        arguments = (threads, work, describe_code()["tree"])
        left = {task.options(name=job.name).remote(there, job, *arguments): job for job in jobs}
        try:
            while left:
                (ready,), _ = ray.wait(list(left))
                job = left.pop(ready)
                _raise_error(ray, ready, job)
                _see(run, job)
                yield job
        finally:
            for ref in left:
                ray.cancel(ref, force=True)


def _on_node(run: Run, job: Job, threads: int, work: Work, tree: str) -> None:
    if describe_code()["tree"] != tree:
        raise RuntimeError(f"oodlib on node {platform.node()} is another version than the one that started the run")
    work(run, job, threads)


def _raise_error(ray: Any, ready: Any, job: Job) -> None:
    try:
        ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        error.cause.add_note(f"in job {job.name}, on the cluster:\n{error}")
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"job {job.name} was lost {RETRIES + 1} times ({str(error).strip().splitlines()[0]}); give the same "
            "command again: what is done stays, and the rest goes on from its last checkpoint"
        ) from None


def _see(run: Run, job: Job) -> None:
    """Wait until this process, too, sees what a job wrote on another node."""
    end = time.monotonic() + SIGHT_S
    while not run.done(job):
        if time.monotonic() > end:
            raise RuntimeError(
                f"job {job.name} is done, but its results are not seen in {run.store}: that folder must lie on a file "
                "system that all nodes share, under the same path"
            )
        time.sleep(0.5)
        if (folder := run.part(job).parent).exists():
            os.listdir(folder)  # makes a network file system look again


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or RAY_ADDRESS, or to one that is started here and ended again."""
    if find_spec("ray") is None:
        raise ValueError('machine.executor is "ray", and Ray is not installed: pip install "oodlib[ray]" (or ray)')
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        _check(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        yield ray
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """RuntimeError unless a cluster answers. Another process asks, because Ray itself waits for minutes, then exits."""
    try:
        command = [sys.executable, "-c", CONNECT, address]
        result = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=ANSWER_S)
        if result.returncode == 0:
            return
        if "AuthenticationError" in result.stderr:
            raise RuntimeError(
                f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token here and on every node, and "
                "give every node the same file ~/.ray/auth_token"
            )
        reason = result.stderr.strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {ANSWER_S} s"
    raise RuntimeError(
        f"no Ray cluster can be reached at {address} ({reason}): start one with `ray start --head`, have every other "
        "machine join it with `ray start --address=HOST:6379`, this one too, then give the same command again; what "
        "was done is kept"
    )
