"""A rehearsal: one update on the shipped tiny model with a run's options of TRL and PEFT, to see what they refuse."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transformers import PrinterCallback

from oodlib.config import Config
from oodlib.models.loading import quiet
from oodlib.run import Run
from oodlib.training.arms import make_setup
from oodlib.training.rl import make_trainer
from oodlib.training.sft import sft_trainer


def rehearse(config: Config) -> None:
    """ValueError, one line, where TRL or PEFT refuse sft.options, rl.options or model.lora at a first update."""
    quiet()
    lora = {name: value for name, value in config.model.lora.items() if name != "target_modules"}  # of another model
    small = {
        "preset": "rehearsal",
        "task": {"name": "general_points", "options": {}, "prompt_style": "compact", "max_new_tokens": 4},
        "model": {"source": "tiny", "lora": lora},
        "eval": {"attempts": 1},
        "sft": {"steps": 1, "checkpoints": [0, 1], "batch_size": 2, "warmup_steps": 0},
        "rl": {
            "starts": [0],
            "steps": 1,
            "prompts": 2,
            "samples": 2,
            "updates_per_batch": 1,
            "epochs": 1,
            "attempts": 1,
        },
        "machine": {
            "launch": None,
            "processes": None,
            "micro_batch": None,
            "executor": "local",
            "generator": "dynamic",
        },
    }
    small = config.changed(small)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(small, Path(folder))
        for settings, given, trainer in (
            ("sft.options", config.sft.options, lambda: sft_trainer(run, 0)),
            ("rl.options", config.rl.options, lambda: make_trainer(make_setup(run, 0, "rl", 0))),
        ):
            if given or lora:
                try:
                    update = trainer()
                    update.remove_callback(PrinterCallback)
                    update.train()
                except Exception as error:  # whatever they raise
                    options = f"{settings} = {given}" + (f", model.lora = {config.model.lora}" if lora else "")
                    raise ValueError(f"{options}: refused in a rehearsal: {' '.join(str(error).split())}") from None
