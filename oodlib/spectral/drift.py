"""How far a model has moved from its base: in what it says, in its hidden states and in its weights.

The measures of the debate on what predicts forgetting, side by side on one system: `MEASURES` has each with its source.
What is said and the hidden states are those of ID prompts: a practitioner has no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from oodlib.inference.episodes import as_text, play
from oodlib.inference.evaluation import right_answer_loss
from oodlib.io import as_measurements
from oodlib.models.loading import load_model
from oodlib.models.names import matrices
from oodlib.models.sources import model_folder
from oodlib.registry import BASELINES
from oodlib.run import Run
from oodlib.spectral.angles import compare
from oodlib.spectral.metrics import INTRUDER, TOLERANCE, ZERO, effective_rank
from oodlib.spectral.svd import Spectrum, count_of, spectrum
from oodlib.tasks import Task

LEADING = 0.25  # share of a matrix's directions, and of its weights, that count as principal
DRAWS = 4  # answers of the base to each prompt, so that enough of them open as demonstrations do

Dialogue = tuple[list[int], list[int]]  # the tokens of a prompt and of an answer


def measure_drift(run: Run, seed: int, count: int, arms: bool, threads: int = 1) -> pd.DataFrame:
    """Every measure of `MEASURES` of SFT's checkpoints and, with `arms`, of the arms' too: rows of `measurements`.

    count: of ID prompts, drawn with the seed. split: the trained one, or "weights". Also id_loss, of a right answer to
    each; of the hidden states cka_LAYER, mmd_LAYER and frechet_LAYER (not of the embeddings, for every prompt ends in
    the same token), and pc1 and pc2, how far their mean moved along the base's principal components. Computes on
    `threads` threads.
    """
    torch.set_num_threads(threads)
    config, task = run.config, run.task
    problems = task.sample(np.random.default_rng([seed, 7]), task.splits.trained.name, count)
    base, tokenizer = load_model(model_folder(config.model.source), to_train=True)
    size, style, longest = config.machine.eval_batch_size, config.task.prompt_style, config.task.max_new_tokens

    def answers(model: PreTrainedModel, draws: int = 1) -> list[Dialogue]:
        set_seed(seed)
        played = play(model, tokenizer, task, problems * draws, style, longest, batch_size=size, temperature=1.0)
        return [(episode.prompt, episode.tokens) for episode in played]

    def formed(dialogues: list[Dialogue]) -> list[Dialogue]:
        return [(prompt, tokens) for prompt, tokens in dialogues if set(tokens[:1]) & opens][:count]

    def divergence(one: PreTrainedModel, other: PreTrainedModel, dialogues: list[Dialogue], after: int = 0) -> float:
        found = answer_divergence(one, other, *zip(*dialogues, strict=True), size, after) if dialogues else np.array([])
        return float(found.mean()) if len(found) else float("nan")

    opens = first_tokens(tokenizer, task, problems, style)
    several = answers(base, DRAWS)
    said, prompts = several[:count], [prompt for prompt, _ in several[:count]]
    start, states = base.state_dict(), hidden_states(base, prompts, size)
    places = [("drift", "sft", 0, step, run.sft_weights(seed, step)) for step in config.sft.checkpoints if step]
    for arm in ("rl", *config.rl.baselines) if arms else ():
        edited = arm != "rl" and BASELINES.get(arm).make_weights is not None
        updates = (config.rl.steps,) if edited else (*config.rl.checkpoints, config.rl.steps)
        places += [("drift", arm, t, n, run.arm_weights(seed, arm, t, n)) for t in config.rl.starts for n in updates]
    rows = []
    for *place, folder in places:
        model, _ = load_model(folder, to_train=True)
        own = answers(model)
        entropy, margin = answer_certainty(model, *zip(*own, strict=True), size)
        after = hidden_states(model, prompts, size)
        pcs = moved_along(states[-1], after[-1])
        numbers = {
            "kl_from_base": divergence(base, model, said),
            "kl_to_base": divergence(model, base, own),
            "kl_from_base_formed": divergence(base, model, formed(several), after=1),
            "kl_to_base_formed": divergence(model, base, formed(own), after=1),
            "id_loss": float(right_answer_loss(model, tokenizer, task, problems, style, size).mean()),
            "entropy": entropy,
            "margin": margin,
            **{name: distance(states[-1], after[-1]) for name, distance in DISTANCES.items()},
            **{
                f"{name}_{layer}": distance(states[layer], after[layer])
                for name, distance in DISTANCES.items()
                for layer in range(1, len(states))
            },
            **{f"pc{i}": value for i, value in enumerate(pcs, 1)},
        }
        counts = {"kl_from_base_formed": len(formed(several)), "kl_to_base_formed": len(formed(own))}
        split = task.splits.trained.name
        rows += [(*place, seed, split, name, value, counts.get(name, count)) for name, value in numbers.items()]
        weights = weight_drift(start, model.state_dict())
        rows += [(*place, seed, "weights", name, value, len(start)) for name, value in weights.items()]
    return as_measurements(rows)


def first_tokens(tokenizer: PreTrainedTokenizerBase, task: Task, problems: Sequence[Any], style: str) -> set[int]:
    """The tokens with which right answers open."""
    rng = np.random.default_rng(0)
    texts = [as_text(task.answer(problem, style, rng), tokenizer, answer=True) for problem in problems]
    return {ids[0] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if ids}


# ---- what is said ----------------------------------------------------------------------------------------


@torch.inference_mode()
def answer_divergence(
    one: PreTrainedModel,
    other: PreTrainedModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    size: int = 64,
    after: int = 0,
) -> np.ndarray:
    """KL(one || other) of each answer, in nats [answers]: the sum over its tokens of the exact KL of the next word.

    The answers are to be drawn from `one`; then the mean is an unbiased estimate of the divergence of whole answers.
    after: how many of an answer's first tokens are not counted.
    """
    found = np.zeros(len(answers))
    for chosen, ids, mask, given in _batches(prompts, answers, size, after):
        p, q = (_next_words(model, ids, mask) for model in (one, other))
        by_token = (p.exp() * (p - q)).sum(-1).cpu() * given
        found[chosen] = by_token.sum(1).double().numpy()
    return found


@torch.inference_mode()
def answer_certainty(
    model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]], size: int = 64
) -> tuple[float, float]:
    """Mean entropy (nats) and mean margin of the likeliest over the next word, at the tokens of answers."""
    entropy = margin = tokens = 0.0
    for _, ids, mask, given in _batches(prompts, answers, size):
        p = _next_words(model, ids, mask)
        top = p.exp().topk(2, -1).values
        entropy += float((-(p.exp() * p).sum(-1).cpu() * given).sum())
        margin += float(((top[..., 0] - top[..., 1]).cpu() * given).sum())
        tokens += float(given.sum())
    return entropy / max(tokens, 1.0), margin / max(tokens, 1.0)


def _batches(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], size: int, after: int = 0
) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
    """Batches of like length: which rows, their tokens and mask [rows, width], and which of the next words [rows,
    width - 1] are the answer's, but for its first `after`."""
    order = sorted(range(len(answers)), key=lambda i: len(prompts[i]) + len(answers[i]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        rows = [torch.tensor([*prompts[i], *answers[i]]) for i in chosen]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        place = torch.arange(ids.shape[1] - 1)
        first = torch.tensor([[len(prompts[i]) - 1 + after] for i in chosen])
        last = torch.tensor([[len(row) - 1] for row in rows])
        yield chosen, ids, mask, ((place >= first) & (place < last)).float()


def _next_words(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Log-probabilities of the next word at each place but the last, [rows, width - 1, words], float32."""
    read = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    return read.logits[:, :-1].float().log_softmax(-1)


# ---- hidden states ---------------------------------------------------------------------------------------


@torch.inference_mode()
def hidden_states(model: PreTrainedModel, prompts: Sequence[list[int]], size: int = 64) -> Tensor:
    """The states at the last token of each prompt, [layers + 1, prompts, width], float64; the first are embeddings."""
    parts, order = [], sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), size):
        rows = [torch.tensor(prompts[i]) for i in order[start : start + size]]
        ids = pad_sequence(rows, batch_first=True).to(model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        last = mask.sum(1) - 1
        parts.append(torch.stack([s[torch.arange(len(rows)), last] for s in states]).double().cpu())
    return torch.cat(parts, 1)[:, np.argsort(order)]


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two sets of states [n, p] and [n, q] of the same inputs: 1 where one is a turned, scaled other."""
    x, y = x - x.mean(0), y - y.mean(0)
    shared = (y.T @ x).square().sum()
    return float(shared / ((x.T @ x).norm() * (y.T @ y).norm()))


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased estimate of the squared MMD of two samples [n, p] whose i-th states are of the same input.

    The U-statistic of Gretton et al. (2012), lemma 6: no term pairs an input with itself, so two equal samples have 0.
    May be below 0. Gaussian kernel; its width is the median distance between two different states of x.
    """
    n = len(x)
    width = torch.pdist(x).median().clamp(min=1e-12)

    def pairs(a: Tensor, b: Tensor) -> Tensor:
        squares = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
        kernel = (-squares / (2 * width**2)).exp()
        return kernel.sum() - kernel.diagonal().sum()

    return float((pairs(x, x) + pairs(y, y) - 2 * pairs(x, y)) / (n * (n - 1)))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of two samples [n, p] and [m, p].

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), rooted; the last trace is the sum of the singular values of the
    product of the centred samples, which needs no covariance of full rank.
    """
    a, b = ((s - s.mean(0)) / (len(s) - 1) ** 0.5 for s in (x, y))
    apart = (x.mean(0) - y.mean(0)).square().sum()
    squared = apart + a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return float(squared.clamp(min=0).sqrt())


DISTANCES = {"cka": linear_cka, "mmd": squared_mmd, "frechet": frechet_distance}


def moved_along(x: Tensor, y: Tensor, count: int = 2) -> list[float]:
    """How far the mean state moved from x to y along the first principal components of x, in states' units."""
    components = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][:count]
    signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()  # else they are arbitrary
    return ((components * signs) @ (y.mean(0) - x.mean(0))).tolist()


# ---- weights ---------------------------------------------------------------------------------------------


def weight_drift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The measures of the weights of `MEASURES`, of two state dicts with the same names and shapes."""
    moved = whole = total = still = same = 0.0
    for name, old in before.items():
        old, new = old.float(), after[name].float()
        moved += float((new - old).double().square().sum())
        whole += float(old.double().square().sum())
        still += float(((new - old).abs() <= TOLERANCE).sum())
        same += float((new.bfloat16() == old.bfloat16()).sum())
        total += old.numel()
    angles, changes, changed, principal, strange, ranks = [], [], 0.0, 0.0, [], []
    for name in matrices(before):
        first = spectrum(before[name], name)
        k = count_of(LEADING, len(first.values))
        both = compare(first, after[name], k, name)
        strange += [float((side.best_match()[:k] < INTRUDER).mean()) for side in (both.left, both.right)]
        ranks.append(effective_rank(both.change))
        angles += [*both.angles_left, *both.angles_right]
        changes += [*both.relative_change[both.values0 > ZERO * both.values0[0]]]
        updated = after[name].float().bfloat16() != before[name].float().bfloat16()
        changed += float(updated.sum())
        principal += float((updated & _principal(first).to(updated.device)).sum())
    return {
        "weight_change": (moved / whole) ** 0.5,
        "angle": float(np.mean(angles)),
        "value_change": float(np.mean(changes)) if changes else 0.0,
        "intruders": float(np.mean(strange)),
        "effective_rank": float(np.mean(ranks)),
        "unchanged": still / total,
        "unchanged_bfloat16": same / total,
        "principal": principal / changed if changed else float("nan"),
    }


def _principal(matrix: Spectrum) -> Tensor:
    """Which weights of a matrix [m, n] are among the largest quarter of its best approximation of a quarter rank."""
    k = count_of(LEADING, len(matrix.values))
    size = ((matrix.left[:, :k] * matrix.values[:k]) @ matrix.right[:, :k].T).abs()
    chosen = torch.zeros(size.numel(), dtype=torch.bool)
    chosen[size.flatten().topk(round(LEADING * size.numel())).indices.cpu()] = True
    return chosen.reshape(size.shape)
