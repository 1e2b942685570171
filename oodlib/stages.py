"""The study as stages and their jobs, named by text: `ensure` loads what is there and runs the rest.

A stage is waves of jobs; those of one wave are independent, a wave needs the ones before it.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm.auto import tqdm

from oodlib.config import Config
from oodlib.io import as_os_error, clear_error
from oodlib.models.sources import model_folder
from oodlib.provenance import Meter
from oodlib.registry import BASELINES
from oodlib.results import Results
from oodlib.run import STAGES, Busy, Job, Run
from oodlib.tasks import check_choice, get_task

NULLS = ("random", "signs", "noise")  # of singular vectors, see `spectral.surgery.Edit`; noise of whole weights too


def waves(config: Config, stage: str) -> list[list[Job]]:
    """The jobs of a stage, wave by wave.

    Costs are in sequences trained on; one that is generated or scored counts as a third.
    """
    check_choice("stage", stage, tuple(STAGES))
    task = get_task(config.task.name, config.task.options)
    problems = sum(len(task.split(split)) for split in task.splits.names) / config.eval.every

    def each_seed(function: str, cost: float, jobs: dict[str, dict[str, Any]]) -> list[Job]:
        return [
            Job(f"{stage}/seed-{seed}/{name.replace(' ', '-')}", stage, f"oodlib.{function}", seed, arguments, cost)
            for seed in config.seeds
            for name, arguments in jobs.items()
        ]

    if stage == "sft":
        steps = {f"step-{t}": {"step": t} for t in config.sft.checkpoints}
        return [
            each_seed("training.sft:train", config.sft.steps * config.sft.batch_size, {"train": {}}),
            each_seed("training.sft:measure", problems / 1.5, steps),
        ]
    if stage == "rl":
        cost = 1.4 * config.rl.steps * config.rl.samples_per_update + problems / 3
        arms = [(arm, t) for arm in ("rl", *config.rl.baselines) for t in config.rl.starts]
        jobs = {f"{arm.replace(':', '.')}-from-{t}": {"arm": arm, "from_step": t} for arm, t in arms}
        train = each_seed("training.arms:run_arm", cost, jobs)
        between = {
            f"{name}-at-{update}": {**job, "update": update}
            for name, job in jobs.items()
            if job["arm"] == "rl" or not BASELINES.get(job["arm"]).make_weights
            for update in config.rl.checkpoints
        }
        return [train, each_seed("training.arms:measure_arm", problems / 3, between)] if between else [train]
    if stage == "rotation":
        return [each_seed("spectral.stage:measure_rotation", 10 * problems, {"angles": {}})]
    jobs = {name.replace(",", ""): {"name": name, **edit} for name, edit in edits(config).items()}
    for donor in config.surgery.donors:
        jobs |= {f"{job} from {donor}": {**jobs[job], "donor": donor} for job in list(jobs) if "donor" not in jobs[job]}
    return [each_seed("spectral.stage:operate", problems / 3, jobs)]


def edit_name(
    part: str, where: str, top: float = 1.0, draw: int | None = None, of: str | None = None, tail: float | None = None
) -> str:
    """The name of a surgical edit, which is the table's `arm`: "vectors, every matrix, top 0.25".

    part: vectors, values or whole, or a null `of` one of them. where: projections, every matrix, embeddings (embedding
    and head), layers N (the first N), layers N and embeddings, or numbers (the rows of `surgery.words`).
    """
    end = f"tail {tail:g}" if tail else f"top {top:g}" if top < 1 else ""
    words = (f"{part} for {of}" if of else part, where, end, "" if draw is None else f"draw {draw}")
    return ", ".join(word for word in words if word)


def edits(config: Config) -> dict[str, dict[str, Any]]:
    """The surgical edits of a configuration by `edit_name`, as arguments of `operate`."""
    settings = config.surgery
    found: dict[str, dict[str, Any]] = {}

    def add(part: str, where: str, nulls: Sequence[str] = (), **options: Any) -> None:
        end = {name: options[name] for name in ("top", "tail") if name in options}
        found[edit_name(part, where, **end)] = {"part": part, **options}
        for draw in range(settings.draws):
            for null in nulls:
                found[edit_name(null, where, **end, draw=draw, of=part)] = {
                    "part": null, "of": part, "draw": draw, **options
                }  # fmt: skip

    for where, embeddings in (("projections", False), ("every matrix", True))[: 1 + settings.embeddings]:
        for top in settings.shares:
            add("vectors", where, NULLS, top=top, embeddings=embeddings)
            add("values", where, top=top, embeddings=embeddings)
        for tail in settings.tail_shares:
            add("vectors", where, tail=tail, embeddings=embeddings)
    for layers in settings.layers:
        add("whole", f"layers {layers}", ("noise",), layers=layers)
        if settings.embeddings:
            add("whole", f"layers {layers} and embeddings", ("noise",), layers=layers, embeddings=True)
    if settings.embeddings:
        add("whole", "embeddings", ("noise",), layers=0, embeddings=True)
    if settings.words:
        add("whole", "numbers", ("noise",), words=settings.words)
    return found


def check(config: Config) -> None:
    """ValueError for what can be found out before any work: a model, a launch configuration or a package that is not
    there, a baseline that does not fit the configuration, options that TRL or PEFT refuse."""
    folder = model_folder(config.model.source)
    for name in config.rl.baselines:
        BASELINES.get(name).check(config)
    if config.machine.launch:
        import_module("oodlib.scale.launch").configuration(config.machine.launch)
    if config.machine.generator == "vllm":
        import_module("oodlib.training.rl").by_vllm(config)
    if config.surgery.layers:
        config_of = import_module("transformers").AutoConfig.from_pretrained
        n_layers = config_of(folder, trust_remote_code=False).get_text_config().num_hidden_layers
        if max(config.surgery.layers) > n_layers:
            raise ValueError(f"surgery.layers = {config.surgery.layers}: {config.model.source} has {n_layers} layers")
    if config.surgery.words:
        tokenizer = import_module("oodlib.models.loading").load_tokenizer(folder)
        import_module("oodlib.spectral.stage").token_ids(tokenizer, config.surgery.words)
    if config.sft.options or config.rl.options or config.model.lora:
        import_module("oodlib.training.rehearsal").rehearse(config)


def at_hand(run: Run, stage: str) -> bool:
    """Whether `ensure` would find all measurements of a stage, in this run or the reference, and run nothing."""
    left, reference = _left(run, stage)
    return not left or reference is not None


def _left(run: Run, stage: str) -> tuple[list[Job], Path | None]:
    """A stage's jobs that are not done; and the reference run that stands for them, where none is."""
    jobs = [job for wave in waves(run.config, stage) for job in wave]
    left = [job for job in jobs if not run.done(job)]
    return left, run.reference(stage) if left and len(left) == len(jobs) else None


def ensure(run: Run, *stages: str) -> None:
    """Load the measurements of stages from this run or from the reference run, or run their jobs.

    Prints which. Jobs that are done are not run again; one that was interrupted goes on from its last
    checkpoint. What a stage needs before it is run first.
    """
    for stage in stages:
        if stage not in run.sources:
            run.sources[stage] = _ensure(run, stage)


def _ensure(run: Run, stage: str) -> Path:
    left, reference = _left(run, stage)
    if reference:
        run.borrowed.add(stage)
        method = Results(reference).manifest["stages"][stage].get("method")
        old = "" if method == STAGES[stage].method else ", measured by an older method"
        print(
            f"{stage}: loaded from the committed reference run ({reference.name}{old}); machine.reference: false runs "
            "it here"
        )
        return reference
    if left:
        check(run.config)
    ran = False
    try:
        with run.lock():
            ran = _run(run, stage)
    except Busy:
        if left:  # else another notebook is reading the same results, and nothing is to be written
            raise
    if not ran:
        print(f"{stage}: already done in this folder, loaded")
    return run.folder


def _run(run: Run, stage: str) -> bool:
    """Run what is left of a stage, and first of the stages it needs; returns whether anything ran."""
    mine = waves(run.config, stage)
    ran = any(not run.done(job) for wave in mine for job in wave)
    if ran:
        for needed in STAGES[stage].after[-1:]:  # it brings those before it
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
    run.collect([job for stage in STAGES for wave in waves(run.config, stage) for job in wave])


def _run_wave(run: Run, stage: str, wave: list[Job]) -> None:
    left = [job for job in wave if not run.done(job)]
    if not left:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = 1 if run.config.machine.launch else min(run.config.machine.jobs or cores, len(wave))
    threads = max(1, cores // workers)  # the same again after an interruption, for it may change the last digits
    total = sum(job.cost for job in wave)
    with tqdm(total=round(total), desc=stage, unit="seq", unit_scale=True, leave=False) as bar:
        bar.update(round(total - sum(job.cost for job in left)))
        if run.config.machine.executor == "ray":
            done = import_module("oodlib.scale.ray").run_jobs(run, left, threads, work)
        else:
            calls = (delayed(work)(run, job, threads) for job in left)
            done = Parallel(n_jobs=workers, return_as="generator_unordered")(calls)
        for job in done:
            bar.update(round(job.cost))


def work(run: Run, job: Job, threads: int) -> Job:
    """Do one job and write its part."""
    import torch  # late, as transformers is, which takes seconds

    from oodlib.models.loading import quiet

    quiet()

    torch.set_num_threads(threads)
    module, function = job.function.split(":")
    try:
        tables = getattr(import_module(module), function)(run, job.seed, **job.arguments)
    except Exception as error:  # the writers of weights say a full disk in ways of their own
        if not run.folder.exists():
            raise clear_error(OSError(errno.ENOENT, ""), run.folder) from error
        if shutil.disk_usage(run.folder).free < 2**20:
            raise clear_error(OSError(errno.ENOSPC, ""), run.folder) from error
        if not str(error).startswith("cannot write into") and (os_error := as_os_error(error)):
            raise clear_error(os_error, run.folder) from error
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
