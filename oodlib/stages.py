"""Stages: what a notebook asks for. A stage is waves of jobs; `ensure` loads what is there and runs the rest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib import import_module

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from oodlib.presets import Preset
from oodlib.provenance import Meter
from oodlib.runs import Job, Run

# stage -> the module whose `jobs_<stage>(preset)` lists its waves of jobs, and the stage that it needs
_STAGES = {
    "sft": ("oodlib.sft", None),
    "rl": ("oodlib.rl", "sft"),
    "rotation": ("oodlib.rotation", "rl"),
    "surgery": ("oodlib.rotation", "sft"),
}
STAGES = tuple(_STAGES)


def waves(preset: Preset, stage: str) -> list[list[Job]]:
    """The jobs of a stage; those of one wave are independent, a wave needs the ones before it."""
    module = import_module(_STAGES[stage][0])
    make: Callable[[Preset], list[list[Job]]] = getattr(module, f"jobs_{stage}")
    return make(preset)


def ensure(run: Run, stage: str) -> None:
    """Have the measurements of a stage at hand: from this run, from the reference run, or by running its jobs.

    Says which. Jobs that are done are not run again; one that was interrupted goes on from its last
    checkpoint. What a stage needs before it is run first.
    """
    if stage in run.sources:
        return
    jobs = [job for wave in waves(run.preset, stage) for job in wave]
    left = [job for job in jobs if not run.done(job)]
    if left and run.preset.reference and len(left) == len(jobs) and (reference := run.reference()):
        run.sources[stage] = reference
        print(
            f"{stage}: loaded from the committed reference run ({reference.name}); reference=False runs it here"
        )
        return
    if left:
        _run(run, stage)
    else:
        print(f"{stage}: already done in this folder, loaded")
    run.sources[stage] = run.folder


def _run(run: Run, stage: str) -> None:
    needed = _STAGES[stage][1]
    if needed and any(not run.done(job) for wave in waves(run.preset, needed) for job in wave):
        _run(run, needed)
    with run.lock(), Meter() as meter:
        for wave in waves(run.preset, stage):
            _run_wave(run, stage, wave)
            run.collect()
        run.note(stage, {"wall_s": round(meter.wall_s, 1), "peak_mib": round(meter.peak_mib)})
    print(f"{stage}: run in {meter.wall_s:.0f} s, at most {meter.peak_mib / 1024:.1f} GiB of memory")


def _run_wave(run: Run, stage: str, wave: list[Job]) -> None:
    left = [job for job in wave if not run.done(job)]
    if not left:
        return
    cores = os.cpu_count() or 1
    workers = min(run.preset.jobs or cores, len(left))
    calls = (delayed(_work)(run, job, max(1, cores // workers)) for job in left)
    total = sum(job.cost for job in wave)
    with tqdm(total=round(total), desc=stage, unit="seq", unit_scale=True, leave=False) as bar:
        bar.update(round(total - sum(job.cost for job in left)))
        for job in Parallel(n_jobs=workers, return_as="generator_unordered")(calls):
            bar.update(round(job.cost))


def _work(run: Run, job: Job, threads: int) -> Job:
    quiet()
    import torch

    torch.set_num_threads(threads)
    module, function = job.function.split(":")
    tables = getattr(import_module(module), function)(run, job.seed, **job.arguments)
    run.finish(job, tables)
    return job


def quiet() -> None:
    """Silence what the training libraries say at every start; errors still show."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
