"""Stage 1, the SFT curve: fine-tune on the ID rule, and measure ID and OOD accuracy at every checkpoint."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from oodlib.evaluate import evaluate, summarise
from oodlib.models import load_model, model_folder
from oodlib.runs import COLUMNS, Run
from oodlib.tasks import SPLITS, get_task
from oodlib.training import demonstrations, fit, sft_trainer


def sft_folder(run: Run, seed: int, step: int) -> Path:
    """The weights after `step` steps of SFT; step 0 is the base model."""
    return model_folder(run.preset.model) if step == 0 else run.checkpoint(seed) / f"checkpoint-{step}"


def train(run: Run, seed: int) -> dict[str, pd.DataFrame]:
    """Full-parameter SFT on ID demonstrations; leaves checkpoints, returns the training loss."""
    preset, folder = run.preset, run.checkpoint(seed)
    model, tokenizer = load_model(model_folder(preset.model))
    data = demonstrations(get_task(preset.task), preset, seed, preset.sft_steps * preset.sft_batch_size)
    trainer = sft_trainer(
        model,
        tokenizer,
        data,
        folder,
        seed,
        preset.sft_steps,
        preset.sft_learning_rate,
        per_device_train_batch_size=preset.sft_batch_size,
        lr_scheduler_type=preset.sft_schedule,
        warmup_steps=preset.sft_warmup_steps,
    )
    log = fit(trainer, folder, preset.sft_checkpoints[1:])
    rows = [("sft", "sft", 0, row["step"], seed, "train", "loss", row["loss"], preset.sft_batch_size) for row in log]
    return {"measurements": as_measurements(rows)}


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
    rows, hands = [], []
    for split in SPLITS:
        judged = evaluate(
            model,
            tokenizer,
            get_task(preset.task),
            split,
            preset.prompt_style,
            preset.max_new_tokens,
            preset.eval_batch_size,
            loss,
            preset.eval_every,
        )
        place = (stage, arm, from_step, step, seed, split)
        rows += [(*place, metric, value, len(judged)) for metric, value in summarise(judged).items()]
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
