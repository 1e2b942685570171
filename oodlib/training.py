"""What every training arm shares: settings, checkpoints at chosen steps, and going on where a run was cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from trl import GRPOConfig, RLOOConfig, SFTConfig, SFTTrainer

from oodlib.launch import STEP
from oodlib.presets import Preset
from oodlib.rotation_callback import RotationCallback
from oodlib.tasks import Task

if TYPE_CHECKING:
    from oodlib.arms import Setup

MARK = "complete"  # an empty file in a checkpoint's folder, laid down after everything else in it
ROTATION = "rotation.parquet"  # beside the checkpoints: how far training turned the weights
LEFTOVERS = ("*.pt", "*.pth", "*.bin", "optimizer_*", "pytorch_model_fsdp_*")  # what only going on needs


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
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        **others,
    }


DECIDED = {  # what the preset's parameters and this module decide of a trainer's options
    "output_dir", "seed", "data_seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "activation_checkpointing", "bf16", "fp16", "use_cpu", "save_strategy", "save_steps", "remove_unused_columns",
}  # fmt: skip
DECIDED_IN_RL = {
    "max_grad_norm", "steps_per_generation", "generation_batch_size", "num_iterations", "num_generations",
    "max_completion_length", "temperature", "epsilon", "beta", "shuffle_dataset",
}  # fmt: skip


def check_options(preset: Preset) -> None:
    """ValueError where sft_options, rl_options or peft name an option that TRL or PEFT lack, that the preset decides
    otherwise, or with a value that they refuse."""
    in_rl = {"grpo": GRPOConfig, "rloo": RLOOConfig, "ppo": TrainingArguments}[preset.rl_algorithm]
    for name, given, kind, decided in (
        ("sft_options", preset.sft_options, SFTConfig, DECIDED),
        ("rl_options", preset.rl_options, in_rl, DECIDED | DECIDED_IN_RL),
        ("peft", preset.peft, LoraConfig, {"peft_type", "task_type", "inference_mode"}),
    ):
        allowed = {f.name for f in fields(kind) if f.init} - decided
        for option in given:
            if option in decided:
                raise ValueError(f"{name} may not set {option!r}: the preset's own parameters decide it")
            if option not in allowed:
                near = get_close_matches(option, allowed) or sorted(allowed)
                raise ValueError(f"{name}: {kind.__name__} has no option {option!r}; it has {', '.join(near)}")
        try:
            kind(**({} if kind is LoraConfig else {"output_dir": ".", "use_cpu": True, "bf16": False}), **given)
        except Exception as error:
            raise ValueError(f"{name} {given}: {kind.__name__} refuses it: {error}") from None


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def batch_options(preset: Preset, batch: int) -> dict[str, Any]:
    """A trainer's options for updates with `batch` sequences in all: shared among processes, and in parts of
    `machine.micro_batch` at most.

    ValueError: processes among which the batch cannot be shared evenly.
    """
    share, rest = divmod(batch, world())
    if rest or not share:
        raise ValueError(f"a batch of {batch} sequences cannot be shared evenly among {world()} processes")
    micro = max(n for n in range(1, min(share, preset.machine.micro_batch or share) + 1) if share % n == 0)
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_checkpointing": preset.machine.gradient_checkpointing,
    }


def adapted(model: Any, options: dict[str, Any]) -> PeftModel:
    """The model with a LoRA adapter to train, by default on every linear layer; `options` of PEFT's LoraConfig."""
    return get_peft_model(model, LoraConfig(**{"target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}))


def fit(trainer: Trainer, folder: Path, save_at: list[int]) -> list[dict[str, float]]:
    """Train, saving `folder`/checkpoint-STEP at the steps given; returns the trainer's log, a row a step.

    Goes on from the last whole checkpoint where an earlier call was cut off, and keeps only the weights
    in the end.
    """
    keeper = _Keeper(folder, set(save_at))
    trainer.add_callback(keeper)
    if dist.is_initialized():
        trainer.add_callback(_Teller())
    trainer.remove_callback(PrinterCallback)
    with trainer.args.main_process_first():
        last = keeper.last_whole()
    if last != max(save_at):
        trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{last}") if last else None)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        keeper.forget(max(save_at))
    return history(folder, max(save_at))


def history(folder: Path, step: int) -> list[dict[str, float]]:
    """The log of a finished training, a row a step."""
    state = TrainerState.load_from_json(str(folder / f"checkpoint-{step}" / "trainer_state.json"))
    return [row for row in state.log_history if "loss" in row or "reward" in row]


def watch(trainer: Trainer, folder: Path, start: Path, steps: Collection[int]) -> Trainer:
    """Have a trainer measure how far it turns the weights of `start`, at these steps; see `watched`.

    Not where each process has but a part of the weights (FSDP).
    """
    if not trainer.is_fsdp_enabled:
        trainer.add_callback(RotationCallback(folder / ROTATION, every=steps, start=start))
    return trainer


def watched(folder: Path, stage: str, arm: str, from_step: int, seed: int) -> tuple[list[tuple], pd.DataFrame]:
    """What was measured so: rows of the table `measurements`, means over all matrices; and rows of `rotation`.

    rotation (radians, left and right together), value_change and change_ratio, as `rotation_callback` defines them; of
    single matrices rotation alone.
    """
    if not (folder / ROTATION).exists():
        return [], pd.DataFrame()
    found = pd.read_parquet(folder / ROTATION)
    found["metric"] = found["metric"].replace({"angle_left": "rotation", "angle_right": "rotation"})
    matrices, means = found["matrix"].nunique(), found.groupby(["step", "metric"])["value"].mean()
    rows = [(stage, arm, from_step, step, seed, "weights", m, value, matrices) for (step, m), value in means.items()]
    turned = found[found["metric"] == "rotation"].groupby(["layer", "module", "metric", "step"], dropna=False)["value"]
    table = turned.mean().astype(np.float32).reset_index().assign(index=0, arm=arm, from_step=from_step)
    return rows, table.assign(stage=stage, seed=seed)


class _Keeper(TrainerCallback):
    """Asks for checkpoints at chosen steps and marks them when they are whole; half-written ones are removed.

    Only the last one holds what going on needs.
    """

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

    def forget(self, *steps: int) -> None:
        """Remove from these checkpoints what only going on needs; it is several times as large as the weights."""
        for path in (p for t in steps for pattern in LEFTOVERS for p in self.folder.glob(f"checkpoint-{t}/{pattern}")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.save_at
        return control

    def on_save(self, args, state, control, **kwargs):
        if dist.is_initialized():
            dist.barrier()  # every process has written its part
        if state.is_world_process_zero:
            (self.folder / f"checkpoint-{state.global_step}" / MARK).touch()
            self.forget(*(step for step in self.save_at if step < state.global_step))


class _Teller(TrainerCallback):
    """Says how far it is to the process that launched this one."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            print(STEP, state.global_step, state.max_steps, flush=True)


def recent(step: int) -> list[int]:
    """The steps whose weights are averaged at a checkpoint: 24, 16, 8 and 0 before it; an early one stands alone."""
    return [step - 24, step - 16, step - 8, step] if step >= 100 else [step]


def kept_steps(preset: Preset, shared: bool = False) -> list[int]:
    """The steps whose weights SFT leaves; with all that an average needs, where one is made or the run is `shared`."""
    wanted = shared or "averaging" in (*preset.rl_arms, preset.sft_remedy)
    return sorted({t for step in preset.sft_checkpoints[1:] for t in (recent(step) if wanted else [step])})


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
    ours = {"completion_only_loss": True, "packing": False, "max_length": None, "dataset_num_proc": None}
    return kind(model=model, args=SFTConfig(**{**ours, **options}), train_dataset=data, processing_class=tokenizer)


def arm_settings(setup: Setup) -> dict[str, Any]:
    """The options that all arms of a preset share: updates, samples an update, learning rate and its schedule."""
    preset = setup.preset
    return settings(
        setup.folder,
        setup.seed,
        preset.rl_steps,
        preset.rl_learning_rate,
        **batch_options(preset, setup.batch),
        lr_scheduler_type=preset.rl_schedule,
        warmup_steps=preset.rl_warmup_steps,
        max_grad_norm=preset.rl_max_grad_norm,
    )


def arm_trainer(setup: Setup, data: Dataset) -> SFTTrainer:
    """An arm that learns by SFT, with the options of all arms."""
    return supervised(setup.model, setup.tokenizer, data, arm_settings(setup))
