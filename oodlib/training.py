"""What every training arm shares: settings, checkpoints at chosen steps, and going on where a run was cut off."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from trl import SFTConfig, SFTTrainer

from oodlib.presets import Preset
from oodlib.rotation_callback import RotationCallback
from oodlib.tasks import Task

if TYPE_CHECKING:
    from oodlib.arms import Setup

MARK = "complete"  # an empty file in a checkpoint's folder, laid down after everything else in it
ROTATION = "rotation.parquet"  # beside the checkpoints: how far training turned the weights
LEFTOVERS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")


def settings(folder: Path, seed: int, steps: int, learning_rate: float, **others: Any) -> dict[str, Any]:
    """The options of a TRL configuration that are the same for every arm: AdamW without weight decay."""
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "output_dir": str(folder),
        "seed": seed,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": 0.0,
        "bf16": half,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        **others,
    }


def fit(trainer: Trainer, folder: Path, save_at: list[int]) -> list[dict[str, float]]:
    """Train, saving `folder`/checkpoint-STEP at the steps given; returns the trainer's log, a row a step.

    Goes on from the last whole checkpoint where an earlier call was cut off, and keeps only the weights
    in the end.
    """
    keeper = _Keeper(folder, set(save_at))
    trainer.add_callback(keeper)
    trainer.remove_callback(PrinterCallback)
    last = keeper.last_whole()
    if last != max(save_at):
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{last}") if last else None)
        log = trainer.state.log_history
    else:
        log = TrainerState.load_from_json(str(folder / f"checkpoint-{last}" / "trainer_state.json")).log_history
    for path in folder.glob("checkpoint-*/*"):
        if path.name in LEFTOVERS:
            path.unlink()
    return [row for row in log if "loss" in row or "reward" in row]


def watch(trainer: Trainer, folder: Path, start: Path, steps: Collection[int]) -> Trainer:
    """Have a trainer measure how far it turns the weights of `start`, at these steps; see `watched`."""
    trainer.add_callback(RotationCallback(folder / ROTATION, every=steps, start=start))
    return trainer


def watched(folder: Path, stage: str, arm: str, from_step: int, seed: int) -> list[tuple]:
    """What was measured so: rows of the table `measurements`, means over all matrices.

    rotation (radians, left and right together), value_change and change_ratio, as `rotation_callback` defines them.
    """
    if not (folder / ROTATION).exists():
        return []
    found = pd.read_parquet(folder / ROTATION)
    found["metric"] = found["metric"].replace({"angle_left": "rotation", "angle_right": "rotation"})
    matrices, means = found["matrix"].nunique(), found.groupby(["step", "metric"])["value"].mean()
    return [(stage, arm, from_step, step, seed, "weights", m, value, matrices) for (step, m), value in means.items()]


class _Keeper(TrainerCallback):
    """Asks for checkpoints at chosen steps and marks them when they are whole; half-written ones are removed."""

    def __init__(self, folder: Path, save_at: set[int]):
        self.folder, self.save_at = folder, save_at

    def last_whole(self) -> int | None:
        whole = []
        for path in self.folder.glob("checkpoint-*"):
            if (path / MARK).exists():
                whole.append(int(path.name.split("-")[1]))
            else:
                shutil.rmtree(path)
        return max(whole, default=None)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.save_at
        return control

    def on_save(self, args, state, control, **kwargs):
        (self.folder / f"checkpoint-{state.global_step}" / MARK).touch()


def recent(step: int) -> list[int]:
    """The steps whose weights are averaged at a checkpoint: 24, 16, 8 and 0 before it; an early one stands alone."""
    return [step - 24, step - 16, step - 8, step] if step >= 100 else [step]


def demonstrations(task: Task, preset: Preset, seed: int, n: int) -> Dataset:
    """`n` ID prompts with right answers, both drawn at random: columns prompt, completion."""
    rng = np.random.default_rng(seed)
    problems = task.sample(rng, "id", n)
    style = preset.prompt_style
    return Dataset.from_dict(
        {
            "prompt": [task.prompt(p, style) for p in problems],
            "completion": [task.answer(p, style, rng) for p in problems],
        }
    )


def supervised(model: Any, tokenizer: Any, data: Dataset, options: dict[str, Any], kind=SFTTrainer) -> SFTTrainer:
    """TRL's SFTTrainer over prompt-completion pairs, the loss on the completion alone."""
    config = SFTConfig(**options, completion_only_loss=True, packing=False, max_length=None, dataset_num_proc=None)
    return kind(model=model, args=config, train_dataset=data, processing_class=tokenizer)


def arm_settings(setup: Setup) -> dict[str, Any]:
    """The options that all arms of a preset share: updates, samples an update, learning rate and its schedule."""
    preset = setup.preset
    return settings(
        setup.folder,
        setup.seed,
        preset.rl_steps,
        preset.rl_learning_rate,
        per_device_train_batch_size=setup.batch,
        lr_scheduler_type=preset.rl_schedule,
        warmup_steps=preset.rl_warmup_steps,
        max_grad_norm=preset.rl_max_grad_norm,
    )


def arm_trainer(setup: Setup, data: Dataset) -> SFTTrainer:
    """An arm that learns by SFT, with the options of all arms."""
    return supervised(setup.model, setup.tokenizer, data, arm_settings(setup))
