"""What a preset will take before it runs: parameters, memory by part, disk, floating-point operations and time.

Bytes are counted tensor by tensor, from what a decoder layer of transformers (attention by SDPA) and the trainers
keep; 1 GB is 1e9 bytes. tests/test_planning.py compares the training formula with the measured memory of a process.
What is assumed and not measured stands in `ASSUMPTIONS`, and is printed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import psutil
import torch
import yaml

from oodlib.config import Config, Machine
from oodlib.inference.evaluation import LOGITS
from oodlib.scale.launch import configuration
from oodlib.scale.sizes import Lengths, Shape
from oodlib.stages import edits
from oodlib.tasks import SPLITS, get_task
from oodlib.training.trainer import kept_steps

TILE_ROWS, TILE_WORDS = 4096, 32768  # TRL's fused head makes logits a tile of tokens x words at a time
PLAY_ROWS = 512  # episodes that `play` plays side by side in RL
SPARE = 0.08  # of the memory, for the CUDA context, NCCL's buffers and what an allocator cannot use
TRAINING = 0.4  # share of a large matrix product's rate that is reached; on a CPU generation reaches it too
GENERATION = 0.1  # the same in generation on a GPU, where a token waits for the weights to be read
ASSUMPTIONS = (
    f"training runs at {TRAINING:.0%} of the rate of a large matrix product, and generation at {GENERATION:.0%} (on a "
    f"CPU {TRAINING:.0%}); every answer is as long as it may be and every try is used; one job at a time on a GPU; the "
    "singular value decompositions of the rotation stage are not counted; what Python and its libraries take is not "
    f"either; {SPARE:.0%} of the memory is left to CUDA or the system"
)


def _in_rl(config: Config, shape: Shape) -> Shape:
    """The remedy lora is SFT's alone; `peft` is for RL too."""
    return shape if config.model.lora else replace(shape, trainable=shape.total)


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
class Device:
    """What a config is planned for: processes with memory (bytes) each; `gpus` 0 is the CPU."""

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


def launched(config: Config, device: Device) -> tuple[Machine, int]:
    """How training is launched (ddp, fsdp2 or not at all; a configuration file is read) and in how many processes."""
    machine = config.machine
    if machine.launch is None:
        return machine, 1
    filed = yaml.safe_load(configuration(machine.launch).read_text()) or {}
    name = "fsdp2" if filed.get("distributed_type") == "FSDP" else "ddp"
    count = machine.processes or filed.get("num_processes") or max(device.gpus, 1)
    if device.gpus and count > device.gpus:
        raise ValueError(f"machine.processes {count} is more than the {device.gpus} GPUs that are planned for")
    return machine.model_copy(update={"launch": name, "processes": count}), count


def memory(config: Config, shape: Shape, lengths: Lengths, device: Device) -> dict[str, dict[str, float]]:
    """Bytes by part, a process, for each thing that is done: what is resident then, and what the work adds."""
    half = device.gpus > 0
    machine, processes = launched(config, device)
    sharded = machine.launch == "fsdp2" and processes > 1
    share = processes if sharded else 1

    def step(shape: Shape, batch: int, tokens: int, full_logits: bool) -> dict[str, float]:
        mine = max(1, -(-batch // processes))
        rows = min(mine, machine.micro_batch or mine)
        return training_memory(shape, rows, tokens, half, machine, processes, mine > rows, full_logits)

    kl = config.sft.mitigation == "kl"
    found = {"SFT": step(shape, config.sft.batch_size, lengths.prompt + lengths.answer, kl)}
    if kl:
        found["SFT"] |= {"reference": 4 * shape.total}
    if config.sft.mitigation == "rpsft":  # leading singular vectors, both sides, of matrices of a layer's parameters
        found["SFT"] |= {"singular vectors": 8 * config.sft.mitigation_share * shape.block * shape.layers}
    talk = lengths.prompt + config.rl.attempts * (config.task.max_new_tokens + lengths.message) - lengths.message
    answers = config.rl.prompts * config.rl.samples
    ppo = config.rl.algorithm == "ppo"
    rl = step(_in_rl(config, shape), answers // config.rl.updates_per_batch, talk, ppo)
    reference = {"reference": 4 * shape.total / share} if config.rl.kl and not config.model.lora else {}
    found["RL, an update"] = rl | reference
    rows = -(-answers // processes)
    rows = min(rows, PLAY_ROWS) if ppo or config.rl.attempts > 1 else rows
    vllm = config.machine.generator == "vllm"
    rollout = inference_memory(shape, rows, lengths.prompt, talk, half, rl["weights"], 2 if vllm else 4)
    resident = ("optimizer", "gathered", "bfloat16 copies", "DDP's buckets")
    rollout |= {name: rl[name] for name in resident if name in rl} | reference
    found["RL, rollouts"] = rollout | ({"weights of vLLM": 2 * shape.total} if vllm else {})
    own = (2 if half else 4) * shape.total
    rows = min(config.machine.eval_batch_size, max(_problems(config).values()))
    tries = config.eval.attempts
    longest = lengths.prompt + tries * (config.task.max_new_tokens + lengths.message) - lengths.message
    found["evaluation, answers"] = inference_memory(shape, rows, lengths.prompt, longest, half, own, 2 if half else 4)
    one = (lengths.prompt + lengths.answer) * shape.words * 4  # a sequence's logits in float32
    at_once = one * max(1, min(rows, LOGITS // one))  # three of them, on a GPU also the model's in bfloat16
    found["evaluation, loss"] = {"weights": own, "logits": at_once * (3.5 if half else 3)}
    return found


def _problems(config: Config) -> dict[str, int]:
    task = get_task(config.task.name, config.task.options)
    return {split: -(-len(task.split(split)) // config.eval.every) for split in SPLITS}


def disk(config: Config, shape: Shape) -> dict[str, tuple[int, float, float]]:
    """For SFT and the arms of RL: checkpoints of all seeds, bytes that stay, bytes more at most while training.

    Float32 weights; two float32 moments a trainable parameter lie beside the last, and the one before it while it is
    written.
    """
    moments, seeds = 8 * shape.trainable, config.n_seeds
    kept = len(kept_steps(config))
    edited = config.sft.mitigation in ("averaging", "interpolation", "early_stopping")
    kept += edited * (len(config.sft.checkpoints) - 1)  # beside plain SFT's
    made = [arm for arm in config.rl.baselines if arm.startswith(("averaging", "interpolation"))]
    starts = len(config.rl.starts)
    arms = starts * (2 * (len(config.rl.baselines) - len(made)) + len(made))
    return {
        "SFT": (seeds * kept, 4.0 * shape.total * seeds * kept, 2 * moments),
        "RL": (seeds * arms, 4.0 * shape.total * seeds * arms, 16 * _in_rl(config, shape).trainable),
    }


def work(config: Config, shape: Shape, lengths: Lengths) -> dict[str, tuple[float, float]]:
    """Floating-point operations of each stage, all seeds: in training, and in generation and scoring.

    A token forward: 2 a parameter in matrix products and 4 x layers x width x tokens for attention; a training token
    three times that (Chowdhery et al. 2022, appendix B), four times with gradient checkpointing, and once less where
    the weights are frozen. With a key-value cache nothing is read twice.
    """

    def forward(tokens: float) -> float:  # of a sequence of so many tokens
        return tokens * (2 * shape.computing + 4 * shape.layers * shape.queries * tokens)

    def times(shape: Shape) -> int:  # a forward pass's operations, in training
        return 2 + (shape.trainable == shape.total) + config.machine.gradient_checkpointing

    shown = lengths.prompt + lengths.answer

    def said(tries: int) -> float:
        return forward(lengths.prompt + tries * (config.task.max_new_tokens + lengths.message) - lengths.message)

    seeds, looked = config.n_seeds, sum(_problems(config).values())
    once = looked * said(config.eval.attempts)
    learning = [arm for arm in config.rl.baselines if not arm.startswith(("averaging", "interpolation"))]
    plain = [arm for arm in learning if arm == "sft_continued"]
    starts, samples = len(config.rl.starts), config.rl.steps * config.rl.prompts * config.rl.samples
    samples /= config.rl.updates_per_batch
    talk, playing = said(config.rl.attempts), len(learning) - len(plain)
    trained = samples * starts * times(_in_rl(config, shape)) * (playing * talk + len(plain) * forward(shown))
    # answers, and their log-probabilities before the updates
    generated = playing * starts * samples / config.rl.epochs * 2 * talk + len(config.rl.baselines) * starts * once
    sft = config.sft.steps * config.sft.batch_size * forward(shown) * times(shape)
    return {
        "sft": (seeds * sft, seeds * len(config.sft.checkpoints) * (once + looked * forward(shown))),
        "rl": (seeds * trained, seeds * generated),
        "surgery": (0.0, seeds * len(edits(config)) * once),
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
