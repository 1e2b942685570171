"""Stage 2, RL recovery: RL and its control arms from several SFT checkpoints, each then measured on both splits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
from filelock import FileLock
from peft import PeftModel
from transformers import set_seed

from oodlib.arms import NoData, Setup, load_arm, samples_an_update
from oodlib.arms.rl import ROLLOUTS
from oodlib.launch import launch
from oodlib.models import load_model, load_weights
from oodlib.runs import Run
from oodlib.sft import as_measurements, evaluate_folder, peak_step, save_weights, sft_folder
from oodlib.tasks import get_task
from oodlib.training import adapted, fit, history, watch, watched

LOOKS = tuple(range(10, 10_000, 10))  # the updates at which rotation is measured


def arm_folder(run: Run, seed: int, arm: str, from_step: int) -> Path:
    """The weights of an arm after its last update."""
    return run.checkpoint(seed, arm, from_step) / f"checkpoint-{run.preset.rl_steps}"


def run_arm(run: Run, seed: int, arm: str, from_step: int) -> dict[str, pd.DataFrame]:
    """Train one arm from one SFT checkpoint and measure it; RL also returns its rollouts."""
    preset, folder = run.preset, run.checkpoint(seed, arm, from_step)
    start, end = sft_folder(run, seed, from_step), arm_folder(run, seed, arm, from_step)
    module, log = load_arm(arm), []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        try:
            if make_weights := getattr(module, "make_weights", None):
                save_weights(make_weights(_setup(run, seed, arm, from_step)), start, end)
            else:
                launch(run, "oodlib.rl:learn", seed, arm=arm, from_step=from_step)
                log = history(folder, preset.rl_steps)
        except NoData:
            save_weights(load_weights(start), start, end)
    tables = evaluate_folder(run, end, "rl", arm, from_step, preset.rl_steps, seed)
    rows = [
        ("rl", arm, from_step, row["step"], seed, "train", metric, row[metric], samples_an_update(preset))
        for row in log
        for metric in ("loss", "reward", "frac_reward_zero_std", "entropy", "kl", "value_loss")
        if metric in row
    ]
    means, tables["rotation"] = watched(folder, "rl", arm, from_step, seed)
    tables["measurements"] = pd.concat([tables["measurements"], as_measurements(rows + means)], ignore_index=True)
    rollouts = end / ROLLOUTS
    if rollouts.exists():
        tables["rollouts"] = pd.read_parquet(rollouts).assign(stage="rl", arm=arm, from_step=from_step, seed=seed)
    return tables


def learn(run: Run, seed: int, arm: str, from_step: int) -> None:
    """Train one arm and leave its checkpoints; called in every process of a training."""
    setup, steps = _setup(run, seed, arm, from_step), run.preset.rl_steps
    half_way = steps // 2 // setup.cycle * setup.cycle
    trainer = watch(load_arm(arm).make_trainer(setup), setup.folder, sft_folder(run, seed, from_step), LOOKS)
    fit(trainer, setup.folder, sorted({half_way or steps, steps}))


def _setup(run: Run, seed: int, arm: str, from_step: int) -> Setup:
    preset = run.preset
    set_seed(seed)
    model, tokenizer = load_model(sft_folder(run, seed, from_step), to_train=True, adapter=bool(preset.peft))
    if preset.peft and not isinstance(model, PeftModel):
        model = adapted(model, preset.peft)
    return Setup(
        model,
        tokenizer,
        get_task(preset.task, preset.task_options),
        preset,
        seed,
        run.checkpoint(seed, arm, from_step),
        from_step,
        partial(sft_folder, run, seed),
        lambda: peak_step(run.table("measurements"), seed),
    )
