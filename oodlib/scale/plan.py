"""`oodlib plan`: the sizes of a model and of a task's texts, and what the arithmetic of planning.py makes of them.

Nothing is downloaded but a config.json: the model is built without weights, on torch's meta device.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from oodlib.config import Config
from oodlib.io import read_json
from oodlib.models.loading import quiet
from oodlib.models.sources import model_folder
from oodlib.registry import MITIGATIONS
from oodlib.scale.planning import Lengths, Shape, disk, launched, memory, work
from oodlib.tasks import get_task
from oodlib.training.trainer import adapted

CONFIGS = Path(__file__).parent / "model_configs.json"  # shapes of models that need not be at hand
CHARACTERS, TEMPLATE = 3, 30  # characters a token; tokens of a chat template
SPARE = 0.08  # of the memory, for the CUDA context, NCCL's buffers and what an allocator cannot use
TRAINING = 0.4  # share of a large matrix product's rate that is reached; on a CPU generation reaches it too
GENERATION = 0.1  # the same in generation on a GPU, where a token waits for the weights to be read
SMALLER = {
    "training": "machine.micro_batch, machine.gradient_checkpointing, machine.launch fsdp2 with more processes",
    "evaluation": "machine.eval_batch_size",
}


def machine_memory(gpus: int | None = None, memory: float | None = None) -> tuple[int, float]:
    """The GPUs to plan for (0: the CPU) and bytes of memory each: as given (GB), else those of this machine."""
    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    if gpus < 0 or (memory is not None and not 0 < memory < math.inf):
        raise ValueError(f"--gpus {gpus}, --gpu-memory {memory}: GPUs must be 0 or more, GB more than 0 and finite")
    if memory:
        return gpus, memory * 1e9
    if gpus and not here:
        raise ValueError(f"--gpus {gpus}: there is no GPU here to ask for its memory; give --gpu-memory, in GB")
    return gpus, torch.cuda.get_device_properties(0).total_memory if gpus else psutil.virtual_memory().total


def measured_rate(count: int = 8) -> float:
    """Operations a second of large matrix products here: bfloat16 on a GPU, float32 on a CPU."""
    gpu = torch.cuda.is_available()
    n, dtype = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    a = torch.randn(n, n, device="cuda" if gpu else "cpu", dtype=dtype)
    for _ in range(2):  # the first time to warm up
        start = time.perf_counter()
        for _ in range(count):
            product = a @ a
        product[0, 0].item()  # waits for a GPU
    return count * 2 * n**3 / (time.perf_counter() - start)


def model_config(source: str) -> Any:
    """The configuration of a model's language part: from the shipped table, this machine, or the hub's config.json."""
    known = read_json(CONFIGS)
    kind, _, name = source.partition(":")
    name, _, revision = name.partition("@")
    if name in known:
        return AutoConfig.for_model(**known[name])
    try:
        where = name if kind == "hub" else model_folder(source)
        return AutoConfig.from_pretrained(where, revision=revision or None, trust_remote_code=False)
    except OSError:
        names = ", ".join(known)
        raise ValueError(
            f"model.source {source!r}: its config.json is neither here nor on the hub; shapes are known of {names}"
        ) from None


def shape_of(config: Config) -> Shape:
    """The sizes of a configuration's model, with the adapter that SFT trains, if any."""
    about = model_config(config.model.source).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(about, trust_remote_code=False)
        total = model.num_parameters()
        layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        block = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
        if config.model.lora:
            model = adapted(model, config.model.lora)
        elif config.sft.mitigation != "none" and (prepare := MITIGATIONS.get(config.sft.mitigation).prepare):
            model = prepare(model, config)
    hidden, heads = about.hidden_size, about.num_attention_heads
    size = getattr(about, "head_dim", None) or hidden // heads
    return Shape(
        total=total,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        block=block,
        layers=about.num_hidden_layers,
        hidden=hidden,
        inner=getattr(about, "intermediate_size", None) or 4 * hidden,
        queries=heads * size,
        keys=(getattr(about, "num_key_value_heads", None) or heads) * size,
        words=about.vocab_size,
        tied=bool(about.tie_word_embeddings),
    )


def lengths_of(config: Config, sampled: int = 256) -> Lengths:
    """Tokens of the longest of some texts of the task, from their characters: the tokenizer need not be at hand."""
    task, rng = get_task(config.task.name, config.task.options), np.random.default_rng(0)
    style = config.task.prompt_style
    problems = [problem for split in task.splits.names for problem in task.sample(rng, split, sampled // 2)]

    def longest(texts: list[str] | list[list[dict[str, str]]]) -> int:
        plain = [x if isinstance(x, str) else "".join(message["content"] for message in x) for x in texts]
        return max(map(len, plain)) // CHARACTERS

    return Lengths(
        longest([task.prompt(p, style) for p in problems]) + (TEMPLATE if style == "chat" else 0),
        longest([task.answer(p, style, rng) for p in problems]) + 1,
        longest([task.feedback(p, task.verify(p, ""), style) for p in problems[:8]]),
    )


def describe(config: Config, gpus: int, room: float, rate: float | None) -> tuple[str, bool]:
    """The plan as text, what does not fit first; and whether all fits.

    `room`: bytes of a GPU, or of this machine; `rate`: operations a second of one, measured here if it is None.
    """
    quiet()
    shape, lengths = shape_of(config), lengths_of(config)
    machine, processes = launched(config, gpus)
    needs = pd.DataFrame(memory(config, shape, lengths, gpus)) / 1e9
    needs.loc["together"] = needs.sum()
    usable = room * (1 - SPARE) / 1e9
    large = needs.loc["together"][lambda total: total > usable]
    lines = []
    if len(large):
        settings = [SMALLER["training"]] if set(large.index) - {"evaluation"} else []
        settings += [SMALLER["evaluation"]] if "evaluation" in large.index else []
        totals = ", ".join(f"{name} ({total:,.1f} GB)" for name, total in large.items())
        lines.append(f"Does not fit in the {usable:,.1f} usable GB: {totals}. Reduce: {', '.join(settings)}.")
    checkpoints, stays, more = disk(config, shape)
    how = f"{machine.launch}, {processes} processes" if machine.launch else "one process"
    lines += [
        f"{config.preset}: {config.model.source}, {shape.total:,} parameters, SFT trains {shape.trainable:,}",
        f"training: {how}, micro batch {machine.micro_batch or 'the whole batch'}; "
        f"about {lengths.prompt} tokens of a prompt, {lengths.answer} of an answer",
        f"\nGB {'a GPU' if gpus else 'on the CPU'}, of {room / 1e9:,.1f}",
        needs.to_string(float_format="{:,.2f}".format, na_rep=""),
        f"\ndisk: {checkpoints} checkpoints, {stays / 1e9:,.1f} GB; {more / 1e9:,.1f} GB more while training",
    ]
    speed, source = (rate, "as given") if rate else (measured_rate(), "measured here")
    for stage, (training, generation) in work(config, shape, lengths).items():
        trains = training / (TRAINING * processes * speed) / 3600
        generates = generation / ((GENERATION * gpus if gpus else TRAINING) * speed) / 3600
        lines.append(f"{stage}: {trains + generates:,.2f} hours, {generates:,.2f} of them generation and scoring")
    lines.append(
        f"Time at {speed / 1e12:,.3g} TFLOP/s, {source}, of which training reaches {TRAINING:.0%}, generation "
        f"{GENERATION if gpus else TRAINING:.0%}. Every answer is taken as long as it may be; rotation is not counted."
    )
    return "\n".join(lines), not len(large)
