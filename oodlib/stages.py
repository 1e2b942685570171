"""Stages: what a notebook asks for. A stage is waves of jobs; `ensure` loads what is there and runs the rest."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from oodlib.cluster import run_jobs
from oodlib.presets import Preset
from oodlib.provenance import Meter
from oodlib.runs import Busy, Job, Run, clear_error
from oodlib.tasks import SPLITS, check_choice, get_task

NEEDS = {"sft": None, "rl": "sft", "rotation": "rl", "surgery": "sft"}
STAGES = tuple(NEEDS)
NULLS = ("random", "signs", "noise")  # of surgery: see surgery.py


def waves(preset: Preset, stage: str) -> list[list[Job]]:
    """The jobs of a stage; those of one wave are independent, a wave needs the ones before it.

    Costs are in sequences trained on; one that is generated or scored counts as a third.
    """
    check_choice("stage", stage, STAGES)
    task = get_task(preset.task, preset.task_options)
    problems = sum(len(task.split(split)) for split in SPLITS) / preset.eval_every

    def job(seed: int, name: str, function: str, cost: float, /, **arguments: Any) -> Job:
        place = f"{stage}/seed-{seed}/{name.replace(' ', '-')}"
        return Job(place, stage, f"oodlib.{function}", seed, arguments, cost)

    seeds = preset.seeds
    if stage == "sft":
        cost = preset.sft_steps * preset.sft_batch_size
        steps = preset.sft_checkpoints
        return [
            [job(seed, "train", "sft:train", cost) for seed in seeds],
            [job(seed, f"step-{t}", "sft:measure", problems / 1.5, step=t) for seed in seeds for t in steps],
        ]
    if stage == "rl":
        answers = preset.rl_steps * preset.rl_prompts * preset.rl_samples / preset.rl_updates_per_batch
        cost = 1.4 * answers + problems / 3
        arms = [(arm, t) for arm in preset.rl_arms for t in preset.rl_from]
        return [
            [
                job(seed, f"{arm}-from-{t}", "rl:run_arm", cost, arm=arm, from_step=t)
                for seed in seeds
                for arm, t in arms
            ]
        ]
    if stage == "rotation":
        return [[job(seed, "angles", "rotation:measure_rotation", 10 * problems) for seed in seeds]]
    return [
        [
            job(seed, name, "rotation:operate", problems / 3, name=name, **edit)
            for seed in seeds
            for name, edit in edits(preset).items()
        ]
    ]


def edits(preset: Preset) -> dict[str, dict[str, Any]]:
    """The surgical edits of a preset by name, as arguments of `rotation.operate`; the name is the table's `arm`."""
    found: dict[str, dict[str, Any]] = {}
    for share in preset.surgery_shares:
        for part in ("values", "vectors"):
            found[f"{part} top {share:g}"] = {"part": part, "top": share}
        for draw in range(preset.surgery_draws):
            for part in NULLS:
                found[f"{part} top {share:g} draw {draw}"] = {"part": part, "top": share, "draw": draw}
    if preset.surgery_embeddings:
        every = {"top": 1.0, "embeddings": True}
        found |= {f"{part} every matrix": {"part": part, **every} for part in ("values", "vectors")}
        for draw in range(preset.surgery_draws):
            for part in NULLS:
                found[f"{part} every matrix draw {draw}"] = {"part": part, **every, "draw": draw}
    for share in preset.surgery_tail_shares:
        for part in ("values", "vectors"):
            found[f"{part} tail {share:g}"] = {"part": part, "tail": share}
    for layers in preset.surgery_layers:
        found[f"vectors top 1 layers {layers}"] = {"part": "vectors", "top": 1.0, "layers": layers}
    return found


def at_hand(run: Run, stage: str) -> bool:
    """Whether `ensure` would find all measurements of a stage, in this run or the reference, and run nothing."""
    left, reference = _left(run, stage)
    return not left or reference is not None


def _left(run: Run, stage: str) -> tuple[list[Job], Path | None]:
    """A stage's jobs that are not done; and the reference run that stands for them, where none is."""
    jobs = [job for wave in waves(run.preset, stage) for job in wave]
    left = [job for job in jobs if not run.done(job)]
    return left, run.reference(stage) if left and run.preset.reference and len(left) == len(jobs) else None


def ensure(run: Run, stage: str) -> None:
    """Have the measurements of a stage at hand: from this run, from the reference run, or by running its jobs.

    Says which. Jobs that are done are not run again; one that was interrupted goes on from its last
    checkpoint. What a stage needs before it is run first.
    """
    if stage in run.sources:
        return
    left, reference = _left(run, stage)
    if reference:
        run.sources[stage] = reference
        run.borrowed.add(stage)
        stale = "" if run.reference_is_current(stage) else ", measured with another version of the code"
        print(
            f"{stage}: loaded from the committed reference run ({reference.name}{stale}); reference=False runs it here"
        )
        return
    ran = False
    try:
        with run.lock():
            ran = _run(run, stage)
    except Busy:
        if left:  # else another notebook is reading the same results, and nothing is to be written
            raise
    if not ran:
        print(f"{stage}: already done in this folder, loaded")
    run.sources[stage] = run.folder


def _run(run: Run, stage: str) -> bool:
    """Run what is left of a stage, and before it of what it needs; whether anything was."""
    mine = waves(run.preset, stage)
    ran = any(not run.done(job) for wave in mine for job in wave)
    if ran:
        if needed := NEEDS[stage]:
            _run(run, needed)
        with Meter() as meter:
            for wave in mine:
                _run_wave(run, stage, wave)
                _collect(run)
        run.note(stage, meter.wall_s, meter.peak_mib)
        print(f"{stage}: run in {meter.wall_s:.0f} s, at most {meter.peak_mib / 1024:.1f} GiB of memory")
    _collect(run)
    return ran


def _collect(run: Run) -> None:
    run.collect([job for stage in STAGES for wave in waves(run.preset, stage) for job in wave])


def _run_wave(run: Run, stage: str, wave: list[Job]) -> None:
    left = [job for job in wave if not run.done(job)]
    if not left:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if run.preset.machine.launch else min(run.preset.jobs or cores, len(wave))
    threads = max(1, cores // workers)  # the same again after an interruption, for it may change the last digits
    total = sum(job.cost for job in wave)
    with tqdm(total=round(total), desc=stage, unit="seq", unit_scale=True, leave=False) as bar:
        bar.update(round(total - sum(job.cost for job in left)))
        if run.preset.machine.executor == "ray":
            done = run_jobs(run, left, threads)
        else:
            calls = (delayed(work)(run, job, threads) for job in left)
            done = Parallel(n_jobs=workers, return_as="generator_unordered")(calls)
        for job in done:
            bar.update(round(job.cost))


def work(run: Run, job: Job, threads: int) -> Job:
    """Do one job and lay its part down."""
    quiet()
    import torch

    torch.set_num_threads(threads)
    module, function = job.function.split(":")
    try:
        tables = getattr(import_module(module), function)(run, job.seed, **job.arguments)
    except Exception as error:  # the writers of weights say a full disk in ways of their own
        if "No space left" in str(error) or shutil.disk_usage(run.folder).free < 2**20:
            raise clear_error(OSError(errno.ENOSPC, ""), run.folder) from error
        if isinstance(error, torch.OutOfMemoryError):
            raise RuntimeError(
                f"{job.name} does not fit into the GPU's memory: {str(error).split('. ')[0]}. What would fit says "
                "`oodlib plan`; what is done is kept"
            ) from error
        raise
    run.finish(job, tables)
    gc.collect()
    torch.cuda.empty_cache()  # for the next job's processes
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
