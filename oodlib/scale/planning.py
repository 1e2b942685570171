"""What a configuration will take before it runs: memory by part, disk, floating-point operations.

Bytes are counted tensor by tensor, from what a decoder layer of transformers (attention by SDPA) and the trainers
keep; 1 GB is 1e9 bytes. tests/test_planning.py compares the training formula with the measured memory of a process.
plan.py finds the sizes and prints the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from oodlib.config import Config, read_yaml
from oodlib.inference.evaluation import LOGITS
from oodlib.io import shown
from oodlib.registry import BASELINES, MITIGATIONS
from oodlib.scale.launch import configuration
from oodlib.settings import MachineSettings
from oodlib.stages import edits
from oodlib.tasks import get_task
from oodlib.training.trainer import kept_steps

TILE_ROWS, TILE_WORDS = 4096, 32768  # TRL's fused head makes logits a tile of tokens x words at a time
RESIDENT = ("optimizer", "gathered", "bfloat16 copies", "DDP's buckets", "reference")  # while RL generates
PLAY_ROWS = 512  # episodes that `play` plays side by side in RL
COPIES = ("kl", "kl_other_rules", "asft", "iw_sft", "psft")  # mitigations that keep a second model

Parts = dict[str, float]  # bytes by what they hold


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


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt, right answer and checker's message of a task."""

    prompt: int
    answer: int
    message: int

    def episode(self, attempts: int, max_new_tokens: int) -> int:
        """Tokens of an episode: the prompt, answers of full length, and a message between two."""
        return self.prompt + attempts * (max_new_tokens + self.message) - self.message


def training_memory(
    shape: Shape,
    rows: int,
    tokens: int,
    half: bool = False,
    machine: MachineSettings = MachineSettings(),  # noqa: B008  (frozen)
    processes: int = 1,
    accumulates: bool = False,
    full_logits: bool = False,
) -> Parts:
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


def inference_memory(shape: Shape, rows: int, prompt: int, length: int, wide: int, weights: float, cache: int) -> Parts:
    """Bytes by part while `rows` answers are generated, up to `length` tokens with the prompt's.

    A number takes `wide` bytes, in the key-value cache `cache`; a layer's cache grows by copying. The largest tensors
    that pass are the MLP's, while prompts are read, and the last token's float32 logits while words are drawn.
    """
    return {
        "weights": weights,
        "keys and values": rows * length * 2 * shape.keys * cache * (shape.layers + 1),
        "activations": rows * prompt * (3 * shape.inner * wide + 3 * shape.hidden * 4),
        "logits": 4 * rows * shape.words * 4,
    }


def launched(config: Config, gpus: int) -> tuple[MachineSettings, int]:
    """How training is launched (ddp, fsdp2 or not at all; a configuration file is read) and in how many processes."""
    machine = config.machine
    if machine.launch is None:
        return machine, 1
    values = read_yaml(path := configuration(machine.launch)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no configuration of accelerate: expected a mapping, not {shown(values)}")
    name = "fsdp2" if values.get("distributed_type") == "FSDP" else "ddp"
    count = machine.processes or values.get("num_processes") or max(gpus, 1)
    if gpus and count > gpus:
        raise ValueError(f"machine.processes {count} is more than the {gpus} GPUs that are planned for")
    return machine.model_copy(update={"launch": name}), count


def memory(config: Config, shape: Shape, lengths: Lengths, gpus: int) -> dict[str, Parts]:
    """Bytes by part, a process, in SFT, an update of RL, its rollouts and evaluation."""
    half = gpus > 0
    wide = 2 if half else 4
    machine, processes = launched(config, gpus)
    sft, rl, new = config.sft, config.rl, config.task.max_new_tokens
    copied, ppo, vllm = sft.mitigation in COPIES, rl.algorithm == "ppo", machine.generator == "vllm"

    def step(shape: Shape, batch: int, tokens: int, full_logits: bool) -> Parts:
        part = -(-batch // processes)
        rows = min(part, machine.micro_batch or part)
        return training_memory(shape, rows, tokens, half, machine, processes, part > rows, full_logits)

    supervised = step(shape, sft.batch_size, lengths.prompt + lengths.answer, copied)
    if copied:
        supervised["reference"] = 4 * shape.total

    tokens = lengths.episode(rl.attempts, new)
    update = step(in_rl(config, shape), rl.samples_per_update, tokens, ppo)
    if rl.kl and not config.model.lora:
        update["reference"] = 4 * shape.total / (processes if machine.launch == "fsdp2" else 1)

    rows = -(-rl.prompts * rl.samples // processes)
    rows = min(rows, PLAY_ROWS) if ppo or rl.attempts > 1 else rows
    rollouts = inference_memory(shape, rows, lengths.prompt, tokens, wide, update["weights"], 2 if vllm else 4)
    rollouts |= {part: update[part] for part in RESIDENT if part in update}
    if vllm:
        rollouts["weights of vLLM"] = 2 * shape.total

    weights = wide * shape.total
    rows = min(machine.eval_batch_size, max(problems(config)))
    tokens = lengths.episode(config.eval.attempts, new)
    answering = inference_memory(shape, rows, lengths.prompt, tokens, wide, weights, wide)
    one = (lengths.prompt + lengths.answer) * shape.words * 4  # a sequence's logits in float32
    at_once = one * max(1, min(rows, LOGITS // one))  # three of them, on a GPU also the model's in bfloat16
    scoring = {"weights": weights, "logits": at_once * (3.5 if half else 3)}
    evaluation = max(answering, scoring, key=lambda parts: sum(parts.values()))
    return {"SFT": supervised, "RL, an update": update, "RL, rollouts": rollouts, "evaluation": evaluation}


def disk(config: Config, shape: Shape) -> tuple[int, float, float]:
    """Checkpoints of all seeds, bytes that stay, and bytes more at most while training.

    Weights are float32. Beside the last checkpoint of a training, and the one before it while it is written, lie two
    float32 moments a trainable parameter.
    """
    kept = len(kept_steps(config))
    if config.sft.mitigation != "none" and MITIGATIONS.get(config.sft.mitigation).edit:
        kept += len(config.sft.checkpoints) - 1  # beside plain SFT's
    arms = 1 + len(config.rl.baselines) + len(trained_arms(config))  # one that trains keeps two
    count = config.n_seeds * (kept + len(config.rl.starts) * arms)
    return count, 4.0 * shape.total * count, 16 * in_rl(config, shape).trainable


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

    sft, rl, seeds, new = config.sft, config.rl, config.n_seeds, config.task.max_new_tokens
    demonstration, episode = forward(lengths.prompt + lengths.answer), forward(lengths.episode(rl.attempts, new))
    evaluation = sum(problems(config)) * forward(lengths.episode(config.eval.attempts, new))
    fitting = sft.steps * sft.batch_size * demonstration * times(shape)
    measuring = len(sft.checkpoints) * (evaluation + sum(problems(config)) * demonstration)
    starts, trained = len(rl.starts), trained_arms(config)
    supervised = trained.count("sft_continued")  # generates nothing to learn from
    playing = len(trained) - supervised
    samples = starts * rl.steps * rl.samples_per_update
    learning = samples * (playing * episode + supervised * demonstration) * times(in_rl(config, shape))
    rollouts = 2 * playing * samples / rl.epochs * episode  # answers, and their log-probabilities before the updates
    judging = (1 + len(rl.baselines)) * starts * evaluation
    return {
        "sft": (seeds * fitting, seeds * measuring),
        "rl": (seeds * learning, seeds * (rollouts + judging)),
        "surgery": (0.0, seeds * len(edits(config)) * evaluation),
    }


def problems(config: Config) -> list[int]:
    """The number of problems that an evaluation takes of each split."""
    task = get_task(config.task.name, config.task.options)
    return [-(-len(task.split(split)) // config.eval.every) for split in task.splits.names]


def trained_arms(config: Config) -> list[str]:
    """RL and the baselines that train, rather than edit weights."""
    return ["rl", *(name for name in config.rl.baselines if not BASELINES.get(name).make_weights)]


def in_rl(config: Config, shape: Shape) -> Shape:
    """The mitigation lora is SFT's alone; `model.lora` is for RL too."""
    return shape if config.model.lora else replace(shape, trainable=shape.total)
