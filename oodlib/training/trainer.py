"""What every training arm shares: settings, checkpoints at chosen steps, and going on where a run was cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from oodlib.config import Config
from oodlib.io import read_json, read_table
from oodlib.models.loading import MARK, mix, working_dtype
from oodlib.registry import BASELINES, MITIGATIONS
from oodlib.run import Run
from oodlib.spectral.callback import RotationCallback
from oodlib.tasks import Task
from oodlib.training.setup import STEP, Setup

# TRL's own way on GPUs, on any device: the head reads answers alone. On CPUs it would read prompts too and drop what it
# finds there, half of an update with a vocabulary of 49,000.
trl.trainer.utils._use_triton = lambda device: True

ROTATION = "rotation.parquet"  # beside the checkpoints: how far training turned the weights
LEFTOVERS = ("*.pt", "*.pth", "*.bin", "optimizer_*", "pytorch_model_fsdp_*")  # what only going on needs


def settings(folder: Path, seed: int, steps: int, learning_rate: float, **others: Any) -> dict[str, Any]:
    """The options of a TRL configuration that are the same for every arm: AdamW without weight decay."""
    return {
        "output_dir": str(folder),
        "seed": seed,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": 0.0,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        **others,
    }


def in_processes(run: Run, function: str, seed: int, **arguments: Any) -> None:
    """Call `function` ("module:name") as function(run, seed, **arguments): here, or in `machine.launch`'s processes."""
    if run.config.machine.launch:
        import_module("oodlib.scale.launch").launch(run, function, seed, **arguments)
        return
    module, _, name = function.partition(":")
    getattr(import_module(module), name)(run, seed, **arguments)


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", 0))


def batch_options(config: Config, batch: int) -> dict[str, Any]:
    """A trainer's options for updates with `batch` sequences in all: shared among processes, and in parts of
    `machine.micro_batch` at most; and in what it computes.

    ValueError: processes among which the batch cannot be shared evenly.
    """
    share, rest = divmod(batch, world())
    if rest or not share:
        raise ValueError(f"a batch of {batch} sequences cannot be shared evenly among {world()} processes")
    micro = max(n for n in range(1, min(share, config.machine.micro_batch or share) + 1) if share % n == 0)
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_checkpointing": config.machine.gradient_checkpointing,
        "bf16": working_dtype(config.machine.precision) == torch.bfloat16,
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
    state = read_json(folder / f"checkpoint-{step}" / "trainer_state.json")
    return [row for row in state["log_history"] if "loss" in row or "reward" in row]


def watch(trainer: Trainer, folder: Path, start: Path, steps: Collection[int]) -> Trainer:
    """Have a trainer measure how far it turns the weights of `start`, at these steps; see `watched`.

    Not where each process has but a part of the weights (FSDP).
    """
    if not trainer.is_fsdp_enabled:
        trainer.add_callback(RotationCallback(folder / ROTATION, every=steps, start=start))
    return trainer


def watched(folder: Path, stage: str, arm: str, from_step: int, seed: int) -> tuple[list[tuple], pd.DataFrame]:
    """What was measured so: rows of the table `measurements`, means over all matrices; and rows of `rotation`.

    rotation (radians, left and right together), value_change and change_ratio, as `spectral.callback` defines them; of
    single matrices rotation alone.
    """
    if not (folder / ROTATION).exists():
        return [], pd.DataFrame()
    found = read_table(folder / ROTATION)
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


def averaged_steps(step: int) -> list[int]:
    """The steps whose weights are averaged at a checkpoint: 24, 16, 8 and 0 before it; one before 48 stands alone."""
    return [step - 24, step - 16, step - 8, step] if step >= 48 else [step]


def average(sft: Callable[[int], Path], step: int) -> dict[str, Tensor]:
    """The mean of the weights of `averaged_steps`; `sft(step)` is the folder of an SFT step's weights."""
    steps = averaged_steps(step)
    return mix_steps(sft, dict.fromkeys(steps, 1 / len(steps)))


def mix_steps(sft: Callable[[int], Path], shares: Mapping[int, float]) -> dict[str, Tensor]:
    """The sum of SFT's weights at some steps, each times its share. ValueError where SFT did not keep them."""
    if missing := [t for t in shares if not sft(t).exists()]:
        raise ValueError(
            f"SFT kept no weights of steps {missing}, for nothing was to be averaged when it ran: give another `out`"
        )
    return mix([(sft(t), share) for t, share in shares.items()])


def kept_steps(config: Config, shared: bool = False) -> list[int]:
    """The steps whose weights SFT leaves: its checkpoints, and all that averages of them need.

    Those are the averages that the run makes; where its SFT is plain and `shared`, those of any mitigation, for which
    of them trains it first is not known.
    """
    wanted, own = [lambda step: [step]], config.sft.mitigation
    if shared or any(BASELINES.get(name).averages for name in config.rl.baselines):
        wanted.append(averaged_steps)
    plain = own == "none" or MITIGATIONS.get(own).edit is not None
    mitigations = MITIGATIONS.names() if shared and plain else [own] if own != "none" else []
    wanted += [steps for name in mitigations if (steps := MITIGATIONS.get(name).averages)]
    return sorted({t for step in config.sft.checkpoints[1:] for steps in wanted for t in steps(step)})


def demonstrations(task: Task, config: Config, seed: int, n: int) -> Dataset:
    """`n` ID prompts with right answers, both drawn at random: columns prompt, completion."""
    rng = np.random.default_rng(seed)
    problems = task.sample(rng, task.splits.trained.name, n)
    style = config.task.prompt_style
    return Dataset.from_dict(
        {
            "prompt": [task.prompt(p, style) for p in problems],
            "completion": [task.answer(p, style, rng) for p in problems],
        }
    )


class MitigatedTrainer(SFTTrainer):
    """SFT with another loss: a weight for each token of an answer, a term added, or both.

    Attributes:
        weigh: of a batch's inputs, its tokens' log-probabilities [rows, width - 1] and the number of updates so far,
            the weight of each token's loss; no gradient flows through it.
        penalty: of a batch's inputs, what is added; of several parts of a batch the mean.
    """

    weigh: Callable[[Any, Tensor, int], Tensor] | None = None
    penalty: Callable[[Any], Tensor] | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        added = 0.0
        if self.penalty:  # first, for TRL may take things out of the inputs
            parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            added = self.penalty(inputs) / parts
        if self.weigh and not return_outputs:
            outputs = model(**{**inputs, "use_cache": False}, fused_lm_head=True)  # as TRL's own loss does
            weights = self.weigh(inputs, outputs.log_probs.detach(), self.state.global_step)
            tokens = outputs.label_mask.sum() if num_items_in_batch is None else num_items_in_batch
            loss = -(weights * outputs.log_probs).sum() / torch.as_tensor(tokens).clamp(min=1)
            if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                loss = loss * self.accelerator.num_processes
            return loss + added
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (found[0] + added, found[1]) if return_outputs else found + added


def supervised(
    model: Any,
    tokenizer: Any,
    data: Dataset,
    options: dict[str, Any],
    weigh: Callable[[Any, Tensor, int], Tensor] | None = None,
    penalty: Callable[[Any], Tensor] | None = None,
) -> SFTTrainer:
    """TRL's SFTTrainer over prompt-completion pairs, the loss on the completion alone (see `MitigatedTrainer`)."""
    ours = {"completion_only_loss": True, "packing": False, "max_length": None, "dataset_num_proc": None}
    kind = MitigatedTrainer if weigh or penalty else SFTTrainer
    trainer = kind(model=model, args=SFTConfig(**{**ours, **options}), train_dataset=data, processing_class=tokenizer)
    if weigh or penalty:
        trainer.weigh, trainer.penalty = weigh, penalty
    return trainer


def arm_settings(setup: Setup) -> dict[str, Any]:
    """The options that RL and all baselines share: updates, samples an update, learning rate and its schedule."""
    config = setup.config
    return settings(
        setup.folder,
        setup.seed,
        config.rl.steps,
        config.rl.learning_rate,
        **batch_options(config, config.rl.samples_per_update),
        lr_scheduler_type=config.rl.schedule,
        warmup_steps=config.rl.warmup_steps,
        max_grad_norm=config.rl.max_grad_norm,
    )


def arm_trainer(setup: Setup, data: Dataset) -> SFTTrainer:
    """An arm that learns by SFT, with the options of all arms."""
    return supervised(setup.model, setup.tokenizer, data, arm_settings(setup))
