"""What a configuration will take before it runs: memory by part, disk, floating-point operations.

Bytes are counted tensor by tensor, from what a decoder layer of transformers (attention by SDPA) and the trainers
keep; 1 GB is 1e9 bytes. tests/test_planning.py compares the training formula with the measured memory of a process.
plan.py finds the sizes and prints the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from oodlib.config import Config, read_yaml
from oodlib.inference.evaluation import LOGITS
from oodlib.registry import BASELINES, MITIGATIONS
from oodlib.scale.launch import configuration
from oodlib.settings import MachineSettings
from oodlib.stages import edits
from oodlib.tasks import SPLITS, get_task
from oodlib.training.trainer import kept_steps

TILE_ROWS, TILE_WORDS = 4096, 32768  # TRL's fused head makes logits a tile of tokens x words at a time
PLAY_ROWS = 512  # episodes that `play` plays side by side in RL
SPARE = 0.08  # of the memory, for the CUDA context, NCCL's buffers and what an allocator cannot use


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
    """Tokens of the longest prompt, right answer and checker's message of a task, and where they are from."""

    prompt: int
    answer: int
    message: int
    source: str

    def episode(self, attempts: int, max_new_tokens: int) -> int:
        """Tokens of an episode: the prompt, answers of full length, and a message between two."""
        return self.prompt + attempts * (max_new_tokens + self.message) - self.message


@dataclass(frozen=True)
class Device:
    """What a configuration is planned for: processes with memory (bytes) each; `gpus` 0 is the CPU."""

    gpus: int
    memory: float

    @property
    def room(self) -> float:
        return self.memory * (1 - SPARE)


def training_memory(
    shape: Shape,
    rows: int,
    tokens: int,
    half: bool = False,
    machine: MachineSettings = MachineSettings(),  # noqa: B008  (frozen)
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


def launched(config: Config, device: Device) -> tuple[MachineSettings, int]:
    """How training is launched (ddp, fsdp2 or not at all; a configuration file is read) and in how many processes."""
    machine = config.machine
    if machine.launch is None:
        return machine, 1
    values = read_yaml(configuration(machine.launch)) or {}
    name = "fsdp2" if values.get("distributed_type") == "FSDP" else "ddp"
    count = machine.processes or values.get("num_processes") or max(device.gpus, 1)
    if device.gpus and count > device.gpus:
        raise ValueError(f"machine.processes {count} is more than the {device.gpus} GPUs that are planned for")
    return machine.model_copy(update={"launch": name, "processes": count}), count


def memory(config: Config, shape: Shape, lengths: Lengths, device: Device) -> dict[str, dict[str, float]]:
    """Bytes by part, a process, for each thing that is done: what is resident then, and what the work adds."""
    half = device.gpus > 0
    machine, processes = launched(config, device)
    share = processes if machine.launch == "fsdp2" and processes > 1 else 1

    def step(shape: Shape, batch: int, tokens: int, full_logits: bool) -> dict[str, float]:
        part = max(1, -(-batch // processes))
        rows = min(part, machine.micro_batch or part)
        return training_memory(shape, rows, tokens, half, machine, processes, part > rows, full_logits)

    sft, rl, new = config.sft, config.rl, config.task.max_new_tokens
    kl, ppo, vllm = sft.mitigation == "kl", rl.algorithm == "ppo", config.machine.generator == "vllm"
    needs = {"SFT": step(shape, sft.batch_size, lengths.prompt + lengths.answer, kl)}
    if kl:
        needs["SFT"]["reference"] = 4 * shape.total
    if sft.mitigation == "rpsft":  # leading singular vectors, both sides, of matrices of a layer's parameters
        needs["SFT"]["singular vectors"] = 8 * sft.mitigation_share * shape.block * shape.layers
    tokens = lengths.episode(rl.attempts, new)
    update = step(_in_rl(config, shape), rl.samples_per_update, tokens, ppo)
    reference = {"reference": 4 * shape.total / share} if rl.kl and not config.model.lora else {}
    needs["RL, an update"] = update | reference
    rows = -(-rl.prompts * rl.samples // processes)
    rows = min(rows, PLAY_ROWS) if ppo or rl.attempts > 1 else rows
    rollout = inference_memory(shape, rows, lengths.prompt, tokens, half, update["weights"], 2 if vllm else 4)
    resident = ("optimizer", "gathered", "bfloat16 copies", "DDP's buckets")
    rollout |= {name: update[name] for name in resident if name in update} | reference
    needs["RL, rollouts"] = rollout | ({"weights of vLLM": 2 * shape.total} if vllm else {})
    width = 2 if half else 4
    rows = min(config.machine.eval_batch_size, max(_problems(config).values()))
    tokens = lengths.episode(config.eval.attempts, new)
    weights = width * shape.total
    needs["evaluation, answers"] = inference_memory(shape, rows, lengths.prompt, tokens, half, weights, width)
    one = (lengths.prompt + lengths.answer) * shape.words * 4  # a sequence's logits in float32
    at_once = one * max(1, min(rows, LOGITS // one))  # three of them, on a GPU also the model's in bfloat16
    needs["evaluation, loss"] = {"weights": weights, "logits": at_once * (3.5 if half else 3)}
    return needs


def disk(config: Config, shape: Shape) -> dict[str, tuple[int, float, float]]:
    """For SFT and the arms of RL: checkpoints of all seeds, bytes that stay, bytes more at most while training.

    Float32 weights; two float32 moments a trainable parameter lie beside the last, and the one before it while it is
    written.
    """
    kept, mitigation = len(kept_steps(config)), config.sft.mitigation
    if mitigation != "none" and MITIGATIONS.get(mitigation).edit:
        kept += len(config.sft.checkpoints) - 1  # beside plain SFT's
    trained = _trained(config)
    arms = len(config.rl.starts) * (1 + len(config.rl.baselines) + len(trained))  # one that trains keeps two
    seeds = config.n_seeds
    return {
        "SFT": (seeds * kept, 4.0 * shape.total * seeds * kept, 16 * shape.trainable),
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

    rl, seeds, new = config.rl, config.n_seeds, config.task.max_new_tokens
    demonstration, episode = forward(lengths.prompt + lengths.answer), forward(lengths.episode(rl.attempts, new))
    problems = sum(_problems(config).values())
    evaluation = problems * forward(lengths.episode(config.eval.attempts, new))
    arms, trained = 1 + len(rl.baselines), _trained(config)
    plain = trained.count("sft_continued")  # generates nothing to learn from
    samples = len(rl.starts) * rl.steps * rl.samples_per_update
    learning = samples * ((len(trained) - plain) * episode + plain * demonstration) * times(_in_rl(config, shape))
    # answers, and their log-probabilities before the updates
    generation = (len(trained) - plain) * samples / rl.epochs * 2 * episode + arms * len(rl.starts) * evaluation
    sft = config.sft.steps * config.sft.batch_size * demonstration * times(shape)
    measuring = len(config.sft.checkpoints) * (evaluation + problems * demonstration)
    return {
        "sft": (seeds * sft, seeds * measuring),
        "rl": (seeds * learning, seeds * generation),
        "surgery": (0.0, seeds * len(edits(config)) * evaluation),
    }


def _problems(config: Config) -> dict[str, int]:
    task = get_task(config.task.name, config.task.options)
    return {split: -(-len(task.split(split)) // config.eval.every) for split in SPLITS}


def _trained(config: Config) -> list[str]:
    """RL and the baselines that train, rather than edit weights."""
    return ["rl", *(name for name in config.rl.baselines if not BASELINES.get(name).make_weights)]


def _in_rl(config: Config, shape: Shape) -> Shape:
    """The mitigation lora is SFT's alone; `model.lora` is for RL too."""
    return shape if config.model.lora else replace(shape, trainable=shape.total)
