"""Stage 1, the SFT curve: fine-tune on the ID rule, and measure ID and OOD accuracy at every checkpoint."""

from __future__ import annotations

import pandas as pd
from filelock import FileLock
from transformers import set_seed
from trl import SFTTrainer

from oodlib.inference.evaluation import evaluate_model
from oodlib.io import as_measurements
from oodlib.models.loading import load_model, save_weights
from oodlib.models.sources import model_folder
from oodlib.registry import MITIGATIONS
from oodlib.run import Run
from oodlib.training.mitigations import Mitigation
from oodlib.training.trainer import (
    adapted,
    batch_options,
    demonstrations,
    fit,
    history,
    in_processes,
    kept_steps,
    settings,
    supervised,
    watch,
    watched,
)

PLAIN = {"sft.mitigation": "none", "sft.mitigation_weight": 0.0, "sft.mitigation_share": 0.25}


def train(run: Run, seed: int) -> dict[str, pd.DataFrame]:
    """SFT on ID demonstrations, with the mitigation if any; leaves checkpoints, returns training loss and rotation."""
    config, edit = run.config, mitigation_of(run).edit
    trained = Run(config.changed(PLAIN), run.folder, run.store) if edit else run
    tables = _train(trained, seed, kept_steps(config, shared=run.store != run.folder))
    if edit:
        for step in config.sft.checkpoints[1:]:
            weights = edit(step, lambda t: trained.sft_weights(seed, t), config, seed)
            save_weights(weights, trained.sft_weights(seed, step), run.sft_weights(seed, step))
    return tables


def _train(run: Run, seed: int, kept: list[int]) -> dict[str, pd.DataFrame]:
    config, folder = run.config, run.checkpoints(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # runs with one store may want the same SFT
        in_processes(run, "oodlib.training.sft:learn", seed, kept=kept)
    log = history(folder, config.sft.steps)
    rows = [("sft", "sft", 0, row["step"], seed, "train", "loss", row["loss"], config.sft.batch_size) for row in log]
    means, rotation = watched(folder, "sft", "sft", 0, seed)
    return {"measurements": as_measurements(rows + means), "rotation": rotation}


def mitigation_of(run: Run) -> Mitigation:
    """The run's mitigation; one that does nothing for plain SFT."""
    name = run.config.sft.mitigation
    return Mitigation("plain SFT") if name == "none" else MITIGATIONS.get(name)


def learn(run: Run, seed: int, kept: list[int]) -> None:
    """Train one seed's SFT and leave its checkpoints at the steps `kept`; called in every process of a training."""
    config, folder = run.config, run.checkpoints(seed)
    trainer = sft_trainer(run, seed)
    fit(watch(trainer, folder, model_folder(config.model.source), config.sft.checkpoints), folder, kept)


def sft_trainer(run: Run, seed: int) -> SFTTrainer:
    """The trainer of a seed's SFT: all parameters of the base model, or an adapter, on right answers to ID problems."""
    config, mitigation = run.config, mitigation_of(run)
    model, tokenizer = load_model(model_folder(config.model.source), to_train=True)
    set_seed(seed)
    if mitigation.prepare:
        model = mitigation.prepare(model, config)
    if config.model.lora:
        model = adapted(model, config.model.lora)
    if "loss_type" in config.sft.options and (mitigation.weigh or mitigation.options):
        raise ValueError(f"sft.options.loss_type: sft.mitigation {config.sft.mitigation} decides the loss")
    data = demonstrations(run.task, config, seed, config.sft.steps * config.sft.batch_size)
    if mitigation.data:
        data = mitigation.data(data, run.task, config, seed)
    options = settings(
        run.checkpoints(seed),
        seed,
        config.sft.steps,
        config.sft.learning_rate,
        **batch_options(config, config.sft.batch_size),
        lr_scheduler_type=config.sft.schedule,
        warmup_steps=config.sft.warmup_steps,
        **{**config.sft.options, **mitigation.options},
    )
    weigh = mitigation.weigh and mitigation.weigh(model, config)
    penalty = mitigation.penalty and mitigation.penalty(model, config)
    return supervised(model, tokenizer, data, options, weigh, penalty)


def measure(run: Run, seed: int, step: int) -> dict[str, pd.DataFrame]:
    """Accuracy, outcomes and loss of one checkpoint on every problem of every split; and the task's probes."""
    model, tokenizer = load_model(run.sft_weights(seed, step), precision=run.config.machine.precision)
    return evaluate_model(run.config, model, tokenizer, ("sft", "sft", 0, step, seed), loss=True, probes=True)
