"""Which options of TRL's and PEFT's own configurations may be given, and of which type.

What these libraries refuse only when they train is found by a rehearsal (training/rehearsal.py) before the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from oodlib.io import first_fault, one_line, shown

DECIDED = {  # by the settings of a run, and by how it keeps checkpoints
    "output_dir", "seed", "data_seed", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type",
    "warmup_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
    "activation_checkpointing", "bf16", "fp16", "use_cpu", "save_strategy", "save_steps", "remove_unused_columns",
}  # fmt: skip
DECIDED_IN_RL = {
    "max_grad_norm", "steps_per_generation", "generation_batch_size", "num_iterations", "num_generations",
    "max_completion_length", "temperature", "epsilon", "beta", "shuffle_dataset",
}  # fmt: skip
DECIDED_IN_LORA = {"peft_type", "task_type", "inference_mode"}


def check_options(sft: Mapping[str, Any], rl: Mapping[str, Any], lora: Mapping[str, Any], algorithm: str) -> None:
    """ValueError for an option that TRL or PEFT lack, that a setting decides, or whose value they refuse."""
    if not (sft or rl or lora):
        return
    from peft import LoraConfig  # these take seconds, and most runs have no such options
    from transformers import TrainingArguments
    from trl import GRPOConfig, RLOOConfig, SFTConfig

    in_rl = {"grpo": GRPOConfig, "rloo": RLOOConfig, "ppo": TrainingArguments}[algorithm]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check("sft.options", sft, SFTConfig, DECIDED)
        _check("rl.options", rl, in_rl, DECIDED | DECIDED_IN_RL)
        _check("model.lora", lora, LoraConfig, DECIDED_IN_LORA)


def _check(setting: str, given: Mapping[str, Any], kind: type, decided: set[str]) -> None:
    allowed = {f.name for f in fields(kind) if f.init} - decided
    for option, value in given.items():
        if option == "trust_remote_code":
            raise ValueError(f"{setting}.{option} = {value!r}: code that comes with a checkpoint is never run")
        if option in decided:
            raise ValueError(f"{setting}.{option} = {shown(value)}: another setting of the run decides this")
        if option not in allowed:
            near = get_close_matches(str(option), allowed, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown option {setting}.{option} = {shown(value)}: {hint}see {kind.__name__}")
        try:
            TypeAdapter(get_type_hints(kind)[option]).validate_python(value)
        except ValidationError as error:
            why = first_fault(error)
            raise ValueError(f"{setting}.{option} = {shown(value)}: {why} ({kind.__name__})") from None
        except (NameError, TypeError, PydanticSchemaGenerationError):  # a type that cannot be checked by itself
            continue
    fixed = {} if setting == "model.lora" else {"output_dir": ".", "use_cpu": True, "bf16": False}
    try:
        kind(**fixed, **given)
    except Exception as error:  # whatever they raise
        why = one_line(error)
        raise ValueError(f"{setting} = {shown(dict(given))}: {kind.__name__} refuses it: {why}") from None
