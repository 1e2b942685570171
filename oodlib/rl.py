"""Stage 2, RL recovery: RL and its control arms from several SFT checkpoints, each then measured on both splits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from transformers import set_seed

from oodlib.arms import NoData, Setup, make_trainer
from oodlib.arms.rl import ROLLOUTS
from oodlib.models import load_model
from oodlib.runs import Run
from oodlib.sft import as_measurements, evaluate_folder, sft_folder
from oodlib.tasks import get_task
from oodlib.training import fit


def arm_folder(run: Run, seed: int, arm: str, from_step: int) -> Path:
    """The weights of an arm after its last update."""
    return run.checkpoint(seed, arm, from_step) / f"checkpoint-{run.preset.rl_steps}"


def run_arm(run: Run, seed: int, arm: str, from_step: int) -> dict[str, pd.DataFrame]:
    """Train one arm from one SFT checkpoint and measure it; RL also returns its rollouts."""
    preset, folder = run.preset, run.checkpoint(seed, arm, from_step)
    set_seed(seed)
    model, tokenizer = load_model(sft_folder(run, seed, from_step))
    setup = Setup(model, tokenizer, get_task(preset.task), preset, seed, folder)
    half_way = preset.rl_steps // 2 // preset.rl_updates_per_batch * preset.rl_updates_per_batch
    try:
        log = fit(make_trainer(arm, setup), folder, sorted({half_way or preset.rl_steps, preset.rl_steps}))
    except NoData:
        log = []
        tokenizer.save_pretrained(arm_folder(run, seed, arm, from_step))
        model.save_pretrained(arm_folder(run, seed, arm, from_step))
    tables = evaluate_folder(run, arm_folder(run, seed, arm, from_step), "rl", arm, from_step, preset.rl_steps, seed)
    rows = [
        ("rl", arm, from_step, row["step"], seed, "train", metric, row[metric], setup.batch)
        for row in log
        for metric in ("loss", "reward", "frac_reward_zero_std", "entropy")
        if metric in row
    ]
    tables["measurements"] = pd.concat([tables["measurements"], as_measurements(rows)], ignore_index=True)
    rollouts = arm_folder(run, seed, arm, from_step) / ROLLOUTS
    if rollouts.exists():
        tables["rollouts"] = pd.read_parquet(rollouts).assign(stage="rl", arm=arm, from_step=from_step, seed=seed)
    return tables
