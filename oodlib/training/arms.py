"""Stage 2, RL recovery: RL and its baselines from several SFT checkpoints, each then measured on every split.

An arm is RL ("rl") or a baseline; the tables name it in the column `arm`.
"""

from __future__ import annotations

import pandas as pd
from filelock import FileLock
from peft import PeftModel
from transformers import set_seed

from oodlib.inference.evaluation import evaluate_model
from oodlib.io import as_measurements, read_table
from oodlib.models.loading import load_model, load_weights, save_weights
from oodlib.registry import BASELINES
from oodlib.run import Run
from oodlib.training import rl
from oodlib.training.record import ROLLOUTS
from oodlib.training.setup import NoData, Setup
from oodlib.training.trainer import adapted, fit, history, in_processes, watch, watched

LOOKS = tuple(range(10, 10_000, 10))  # the updates at which rotation is measured, beside the last


def run_arm(run: Run, seed: int, arm: str, from_step: int) -> dict[str, pd.DataFrame]:
    """Train one arm from one SFT checkpoint and measure it; RL also returns its rollouts."""
    config, folder = run.config, run.checkpoints(seed, arm, from_step)
    start, end, log = run.sft_weights(seed, from_step), run.arm_weights(seed, arm, from_step), []
    make_weights = None if arm == "rl" else BASELINES.get(arm).make_weights
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        try:
            if make_weights:
                save_weights(make_weights(make_setup(run, seed, arm, from_step)), start, end)
            else:
                in_processes(run, "oodlib.training.arms:learn", seed, arm=arm, from_step=from_step)
                log = history(folder, config.rl.steps)
        except NoData:
            for update in (*config.rl.checkpoints, config.rl.steps):
                save_weights(load_weights(start), start, run.arm_weights(seed, arm, from_step, update))
    tables = measure_arm(run, seed, arm, from_step, config.rl.steps)
    rows = [
        ("rl", arm, from_step, row["step"], seed, "train", metric, row[metric], config.rl.samples_per_update)
        for row in log
        for metric in ("loss", "reward", "frac_reward_zero_std", "entropy", "kl", "value_loss")
        if metric in row
    ]
    means, tables["rotation"] = watched(folder, "rl", arm, from_step, seed)
    tables["measurements"] = pd.concat([tables["measurements"], as_measurements(rows + means)], ignore_index=True)
    rollouts = end / ROLLOUTS
    if arm == "rl" and rollouts.exists():
        tables["rollouts"] = read_table(rollouts).assign(stage="rl", arm=arm, from_step=from_step, seed=seed)
    return tables


def measure_arm(run: Run, seed: int, arm: str, from_step: int, update: int) -> dict[str, pd.DataFrame]:
    """An arm after some of its updates, measured on every split; of RL also the task's probes.

    ValueError where its weights were not kept, for `rl.checkpoints` did not have this update when it was trained.
    """
    weights = run.arm_weights(seed, arm, from_step, update)
    if not weights.exists():
        raise ValueError(
            f"no weights of {arm} from {from_step} after {update} updates were kept, for nothing was to be measured "
            "there when it ran: give another `out`"
        )
    model, tokenizer = load_model(weights, precision=run.config.machine.precision)
    return evaluate_model(run.config, model, tokenizer, ("rl", arm, from_step, update, seed), probes=arm == "rl")


def learn(run: Run, seed: int, arm: str, from_step: int) -> None:
    """Train one arm and leave its checkpoints; called in every process of a training."""
    setup, steps = make_setup(run, seed, arm, from_step), run.config.rl.steps
    half_way = steps // 2 // run.config.rl.cycle * run.config.rl.cycle
    make_trainer = rl.make_trainer if arm == "rl" else BASELINES.get(arm).make_trainer
    trainer = watch(make_trainer(setup), setup.folder, run.sft_weights(seed, from_step), (*LOOKS, steps))
    fit(trainer, setup.folder, sorted({half_way or steps, *run.config.rl.checkpoints, steps}))


def make_setup(run: Run, seed: int, arm: str, from_step: int) -> Setup:
    """What an arm starts from, at an SFT step."""
    config = run.config
    set_seed(seed)
    model, tokenizer = load_model(run.sft_weights(seed, from_step), to_train=True, adapter=bool(config.model.lora))
    if config.model.lora and not isinstance(model, PeftModel):
        model = adapted(model, config.model.lora)
    return Setup(
        model,
        tokenizer,
        run.task,
        config,
        seed,
        run.checkpoints(seed, arm, from_step),
        from_step,
        lambda step: run.sft_weights(seed, step),
    )
