"""`oodlib plan`: what a preset will take, as tables, and what does not fit first."""

from __future__ import annotations

from typing import Any

import torch

from oodlib.config import Config
from oodlib.scale.fitting import fitting, options
from oodlib.scale.planning import ASSUMPTIONS, GENERATION, TRAINING, Device, disk, launched, measured_rate, memory, work
from oodlib.scale.sizes import lengths_of, shape_of
from oodlib.stages import quiet


def show(console: Any, config: Config, device: Device, rate: float | None) -> bool:
    """Print the plan, what does not fit first; whether all fits. `rate`: operations a second of a device."""
    quiet()
    shape, lengths = shape_of(config), lengths_of(config)
    needs = memory(config, shape, lengths, device)
    totals = {name: sum(parts.values()) for name, parts in needs.items()}
    peak = max(totals, key=totals.get)
    over = [f"{name} ({total / 1e9:,.1f} GB)" for name, total in totals.items() if total > device.room]
    each = "a GPU" if device.gpus else "a process on this CPU"
    if over:
        limit = f"{device.room / 1e9:,.1f} GB that can be used of {device.memory / 1e9:,.0f} GB {each}"
        console.print(f"[bold red]Does not fit in the {limit}: {', '.join(over)}.[/]", soft_wrap=True)
        found = fitting(config, shape, lengths, device)
        nearest = options(config, found[0], device, found[1]) if found else "none up to 64 times the GPUs"
        console.print(f"The nearest setting that fits: {nearest}", soft_wrap=True, markup=False, highlight=False)
    part = "all" if shape.trainable == shape.total else f"{shape.trainable:,}, {shape.trainable / shape.total:.2%}"
    console.print(f"[bold]{config.preset}[/]: {config.model.source}, {shape.total:,} parameters, trainable: {part}")
    console.print(f"tokens: prompt {lengths.prompt}, answer {lengths.answer} ({lengths.source})")
    machine, processes = launched(config, device)
    how = f"{machine.launch} over {processes} GPUs" if machine.launch else "one process"
    console.print(f"training: {how}, micro batch {machine.micro_batch or 'the whole batch'}")

    names = list(dict.fromkeys(name for parts in needs.values() for name in parts))
    rows = [[n, *(f"{p[n] / 1e9:,.2f}" if n in p else "" for p in needs.values())] for n in names]
    rows.append(["[bold]together[/]", *(f"{t / 1e9:,.2f}" + (" peak" if n == peak else "") for n, t in totals.items())])
    _table(console, f"GB {each} (it has {device.memory / 1e9:,.1f})", ["", *needs], rows)

    kept = disk(config, shape)
    rows = [[n, str(c), f"{stay / 1e9:,.1f}", f"{more / 1e9:,.1f}"] for n, (c, stay, more) in kept.items()]
    _table(console, "Disk, GB", ["checkpoints of", "number", "that stay", "more while training"], rows)

    here = rate is None
    rate = measured_rate() if rate is None else rate
    rows, spent = [], 0.0
    for stage, (training, inference) in work(config, shape, lengths).items():
        talking = GENERATION * device.gpus if device.gpus else TRAINING
        times = training / TRAINING / processes / rate, inference / talking / rate
        spent += sum(times)
        rows.append([stage, f"{training:.1e}", f"{inference:.1e}", *map(_duration, times)])
    heads = ["stage", "FLOP in training", "in generation, scoring", "time of training", "of generation"]
    _table(console, f"Work of {config.n_seeds} seed(s), and time: {_duration(spent)}", heads, rows)
    source = f"measured here, on {'a GPU' if torch.cuda.is_available() else 'the CPU'}" if here else "as given"
    if here and device.gpus and not torch.cuda.is_available():
        source += ", which is not what is planned for: give --rate"
    console.print(f"Rate: {rate / 1e12:,.3g} TFLOP/s, {source}. Assumed: {ASSUMPTIONS}.")
    return not over


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _table(console: Any, title: str, heads: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
