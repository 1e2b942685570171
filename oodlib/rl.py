"""Stage 2, RL recovery: RL and its control arms from several SFT checkpoints, each then measured on both splits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock
from transformers import set_seed

from oodlib.arms import NoData, Setup, load_arm
from oodlib.arms.rl import ROLLOUTS
from oodlib.models import load_model, load_weights
from oodlib.runs import Run
from oodlib.sft import as_measurements, evaluate_folder, peak_step, save_weights, sft_folder
from oodlib.tasks import get_task
from oodlib.training import fit, watch, watched

LOOKS = tuple(range(10, 10_000, 10))  # the updates at which rotation is measured


def arm_folder(run: Run, seed: int, arm: str, from_step: int) -> Path:
    """The weights of an arm after its last update."""
    return run.checkpoint(seed, arm, from_step) / f"checkpoint-{run.preset.rl_steps}"


def run_arm(run: Run, seed: int, arm: str, from_step: int) -> dict[str, pd.DataFrame]:
    """Train one arm from one SFT checkpoint and measure it; RL also returns its rollouts."""
    preset, folder = run.preset, run.checkpoint(seed, arm, from_step)
    set_seed(seed)
    start, end = sft_folder(run, seed, from_step), arm_folder(run, seed, arm, from_step)
    model, tokenizer = load_model(start, to_train=True)
    setup = Setup(
        model,
        tokenizer,
        get_task(preset.task, preset.task_options),
        preset,
        seed,
        folder,
        from_step,
        partial(sft_folder, run, seed),
        lambda: peak_step(run.table("measurements"), seed),
    )
    module, log = load_arm(arm), []
    half_way = preset.rl_steps // 2 // setup.cycle * setup.cycle
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        try:
            if make_weights := getattr(module, "make_weights", None):
                save_weights(make_weights(setup), start, end)
            else:
                trainer = watch(module.make_trainer(setup), folder, start, LOOKS)
                log = fit(trainer, folder, sorted({half_way or preset.rl_steps, preset.rl_steps}))
        except NoData:
            save_weights(load_weights(start), start, end)
    tables = evaluate_folder(run, end, "rl", arm, from_step, preset.rl_steps, seed)
    rows = [
        ("rl", arm, from_step, row["step"], seed, "train", metric, row[metric], setup.batch)
        for row in log
        for metric in ("loss", "reward", "frac_reward_zero_std", "entropy", "kl", "value_loss")
        if metric in row
    ]
    rows += watched(folder, "rl", arm, from_step, seed)
    tables["measurements"] = pd.concat([tables["measurements"], as_measurements(rows)], ignore_index=True)
    rollouts = end / ROLLOUTS
    if rollouts.exists():
        tables["rollouts"] = pd.read_parquet(rollouts).assign(stage="rl", arm=arm, from_step=from_step, seed=seed)
    return tables
