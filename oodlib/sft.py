"""Stage 1, the SFT curve: fine-tune on the ID rule, and measure ID and OOD accuracy at every checkpoint."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor
from transformers import set_seed
from trl import SFTTrainer

from oodlib.evaluate import evaluate, summarise
from oodlib.launch import launch
from oodlib.models import base_folder, load_model, model_folder
from oodlib.remedies import PenalisedTrainer, load_remedy
from oodlib.runs import COLUMNS, Run, write_whole
from oodlib.tasks import SPLITS, get_task
from oodlib.training import (
    MARK,
    adapted,
    batch_options,
    demonstrations,
    fit,
    history,
    kept_steps,
    settings,
    supervised,
    watch,
    watched,
)

NOT_KEPT = ("trainer_state.json", "adapter_config.json", "model.safetensors.index.json")  # of weights as they were
PLAIN = {"sft_remedy": "none", "sft_remedy_weight": 0.0, "sft_remedy_share": 0.25}  # SFT without a remedy


def sft_folder(run: Run, seed: int, step: int) -> Path:
    """The weights after `step` steps of SFT; step 0 is the base model."""
    return model_folder(run.preset.model) if step == 0 else run.checkpoint(seed) / f"checkpoint-{step}"


def train(run: Run, seed: int) -> dict[str, pd.DataFrame]:
    """SFT on ID demonstrations, with or without a remedy; leaves checkpoints, returns training loss and rotation."""
    preset, folder = run.preset, run.checkpoint(seed)
    remedy = load_remedy(preset.sft_remedy)
    if edit := getattr(remedy, "edit", None):
        plain = Run(preset.model_copy(update=PLAIN), run.folder, run.store)
        tables = train(plain, seed)
        for step in preset.sft_checkpoints[1:]:
            weights = edit(step, partial(sft_folder, plain, seed), preset, seed)
            save_weights(weights, sft_folder(plain, seed, step), sft_folder(run, seed, step))
        return tables
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # runs with one store may want the same SFT
        launch(run, "oodlib.sft:learn", seed)
    log = history(folder, preset.sft_steps)
    rows = [("sft", "sft", 0, row["step"], seed, "train", "loss", row["loss"], preset.sft_batch_size) for row in log]
    means, rotation = watched(folder, "sft", "sft", 0, seed)
    return {"measurements": as_measurements(rows + means), "rotation": rotation}


def learn(run: Run, seed: int) -> None:
    """Train one seed's SFT and leave its checkpoints; called in every process of a training."""
    preset, folder = run.preset, run.checkpoint(seed)
    kept = kept_steps(preset, shared=run.store != run.folder)
    trainer = sft_trainer(run, seed, load_remedy(preset.sft_remedy))
    fit(watch(trainer, folder, model_folder(preset.model), preset.sft_checkpoints), folder, kept)


def sft_trainer(run: Run, seed: int, remedy: ModuleType | None) -> SFTTrainer:
    """The trainer of a seed's SFT, from the base model, with or without a remedy."""
    preset = run.preset
    model, tokenizer = load_model(model_folder(preset.model), to_train=True)
    set_seed(seed)
    if prepare := getattr(remedy, "prepare", None):
        model = prepare(model, preset)
    if preset.peft:
        model = adapted(model, preset.peft)
    task = get_task(preset.task, preset.task_options)
    data = demonstrations(task, preset, seed, preset.sft_steps * preset.sft_batch_size)
    options = settings(
        run.checkpoint(seed),
        seed,
        preset.sft_steps,
        preset.sft_learning_rate,
        **batch_options(preset, preset.sft_batch_size),
        lr_scheduler_type=preset.sft_schedule,
        warmup_steps=preset.sft_warmup_steps,
        **preset.sft_options,
    )
    penalty = getattr(remedy, "penalty", None)
    trainer = supervised(model, tokenizer, data, options, PenalisedTrainer if penalty else SFTTrainer)
    if penalty:
        trainer.penalty = penalty(model, preset)
    return trainer


def save_weights(weights: dict[str, Tensor], like: Path, folder: Path) -> None:
    """Lay a checkpoint down whole: all weights of a model, and configuration and tokenizer of another one."""
    if (folder / MARK).exists():
        return

    def write(path: Path) -> None:
        path.mkdir()
        for file in (*base_folder(like).iterdir(), *like.iterdir()):
            if file.suffix in (".json", ".jinja", ".model", ".txt") and file.name not in NOT_KEPT:
                shutil.copy(file, path)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        (path / MARK).touch()

    write_whole(folder, write)


def measure(run: Run, seed: int, step: int) -> dict[str, pd.DataFrame]:
    """Accuracy, outcomes and loss of one checkpoint on every problem of both splits."""
    return evaluate_folder(run, sft_folder(run, seed, step), "sft", "sft", 0, step, seed, loss=True)


def evaluate_folder(
    run: Run, folder: Path, stage: str, arm: str, from_step: int, step: int, seed: int, loss: bool = False
) -> dict[str, pd.DataFrame]:
    """Both splits for the model in a folder, as the tables `measurements` and `hands`."""
    return evaluate_model(run, *load_model(folder), stage, arm, from_step, step, seed, loss)


def evaluate_model(
    run: Run, model, tokenizer, stage: str, arm: str, from_step: int, step: int, seed: int, loss: bool = False
) -> dict[str, pd.DataFrame]:
    """Both splits for a model in memory, as the tables `measurements` and `hands`."""
    preset = run.preset
    task = get_task(preset.task, preset.task_options)
    rows, hands = [], []
    for split in SPLITS:
        judged = evaluate(
            model,
            tokenizer,
            task,
            split,
            preset.prompt_style,
            preset.max_new_tokens,
            preset.eval_batch_size,
            loss,
            preset.eval_every,
            preset.verify_turns,
            preset.machine.engine,
        )
        place = (stage, arm, from_step, step, seed, split)
        rows += [
            (*place, metric, value, len(judged)) for metric, value in summarise(judged, preset.verify_turns).items()
        ]
        names = dict(zip(("stage", "arm", "from_step", "step", "seed", "split"), place, strict=True))
        hands.append(judged.assign(**names))
    return {"measurements": as_measurements(rows), "hands": pd.concat(hands, ignore_index=True)}


def as_measurements(rows: list[tuple]) -> pd.DataFrame:
    """Rows (stage, arm, from_step, step, seed, split, metric, value, n) as a table."""
    return pd.DataFrame(rows, columns=COLUMNS)


def peak_step(measurements: pd.DataFrame, seed: int) -> int:
    """The SFT step with the highest OOD accuracy of a seed (the earliest, if several are equal)."""
    curve = measurements.query(
        "stage == 'sft' and metric == 'accuracy' and split == 'ood' and seed == @seed"
    ).sort_values("step")
    return int(curve["step"].iloc[curve["value"].to_numpy().argmax()])
