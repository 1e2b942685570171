"""The nearest setting with which a preset fits into the memory at hand, and what to type for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product

from oodlib.config import Config, Machine
from oodlib.scale.planning import Device, memory
from oodlib.scale.sizes import Lengths, Shape


def fitting(config: Config, shape: Shape, lengths: Lengths, device: Device) -> tuple[Config, Device] | None:
    """The nearest setting that fits: fewest GPUs, then fewest things changed, then the largest batches. Else None."""

    def fits(changed: Config, where: Device, evaluation: bool) -> bool:
        found = memory(changed, shape, lengths, where)
        return all(sum(p.values()) <= where.room for n, p in found.items() if n.startswith("evaluation") == evaluation)

    rows = config.machine.eval_batch_size
    while not fits(config.model_copy(update={"eval_batch_size": rows}), device, evaluation=True):
        if rows == 1:
            return None
        rows //= 2
    for where, machine in _settings(config, device):
        try:
            changed = Config(**{**config.model_dump(), "eval_batch_size": rows, "machine": machine.model_dump()})
        except ValueError:  # such as GRPO with several tries under fsdp2
            continue
        if fits(changed, where, evaluation=False):
            return changed, where
    return None


def _settings(config: Config, device: Device) -> Iterator[tuple[Device, Machine]]:
    """Where and how else to train, the nearest first."""
    machine = config.machine
    batch = max(config.sft.batch_size, config.rl.prompts * config.rl.samples // config.rl.updates_per_batch)
    smaller = [machine.micro_batch]
    size = min(batch, machine.micro_batch or batch)
    while size > 1:
        size //= 2
        smaller.append(size)
    gpus = [device.gpus * 2**i for i in range(7)] if device.gpus else [0]
    for count in gpus:
        launches = [machine.launch] if count < 2 or machine.launch == "fsdp2" else [machine.launch, "fsdp2"]
        checkpointing = [True] if machine.gradient_checkpointing else [False, True]
        choices = [
            ((launch != machine.launch) + (check != machine.gradient_checkpointing) + (i > 0), i, launch, check)
            for launch, check, i in product(launches, checkpointing, range(len(smaller)))
        ]
        for _, i, launch, check in sorted(choices, key=lambda c: c[:2]):
            update = {"launch": launch, "gradient_checkpointing": check, "micro_batch": smaller[i]}
            if launch and count:
                update["processes"] = count
            yield Device(count, device.memory), machine.model_copy(update=update)


def options(config: Config, changed: Config, device: Device, where: Device) -> str:
    """What to type for a setting that was found."""
    words = [f"--gpus {where.gpus}"] if where.gpus != device.gpus else []
    if changed.machine != config.machine:
        inner = ", ".join(f"{k}: {json.dumps(v)}" for k, v in changed.machine.model_dump(exclude_defaults=True).items())
        words.append(f"--set 'machine={{{inner}}}'")
    if changed.machine.eval_batch_size != config.machine.eval_batch_size:
        words.append(f"--set eval_batch_size={changed.machine.eval_batch_size}")
    return " ".join(words)
