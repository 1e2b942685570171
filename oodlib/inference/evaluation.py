"""Evaluation: what a model answers on every problem of a split, and how likely it finds a right answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.config import Config
from oodlib.inference.episodes import Episode, as_text, play
from oodlib.inference.generation import read_once, shared_beginning
from oodlib.inference.token_probabilities import continuation_probabilities
from oodlib.io import KEYS, as_measurements
from oodlib.tasks import OUTCOMES, Task, get_task

LOGITS = 2**30
OWN = ("problem", "outcome", "tries", "reward", "loss", *KEYS)  # columns of `evaluate`'s tables for every task


@torch.inference_mode()
def answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    answers: list[str],
    batch_size: int = 512,
) -> np.ndarray:
    """The mean negative log-likelihood a token (nats) of each answer, its end token included.

    `batch_size` at once, or fewer where their logits would take more than LOGITS bytes.
    """
    model.eval()
    losses = np.empty(len(prompts))
    longest = max((len(tokenizer(p + a)["input_ids"]) for p, a in zip(prompts, answers, strict=True)), default=0)
    fit = LOGITS // (4 * (longest + 1) * model.config.get_text_config().vocab_size)
    batch_size = max(1, min(batch_size, fit))
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        asked = tokenizer(prompts[chosen], add_special_tokens=False)["input_ids"]
        given = tokenizer(answers[chosen], add_special_tokens=False)["input_ids"]
        rows = [(a, [*g, tokenizer.eos_token_id]) for a, g in zip(asked, given, strict=True)]
        width = max(len(a) + len(g) for a, g in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        scored = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, (a, g) in enumerate(rows):
            ids[i, : len(a) + len(g)] = torch.tensor(a + g)
            mask[i, : len(a) + len(g)] = 1
            scored[i, len(a) : len(a) + len(g)] = True
        ids, mask, scored = ids.to(model.device), mask.to(model.device), scored.to(model.device)
        shared = len(alike := shared_beginning(asked))
        cache = read_once(model, alike, len(rows)) if shared else None
        logits = model(input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, shared + 1 :], reduction="none")
        scored = scored[:, shared + 1 :]
        nll = nll * scored
        losses[chosen] = (nll.sum(1) / scored.sum(1)).cpu().numpy()
    return losses


def right_answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Any],
    prompt_style: str,
    batch_size: int = 512,
) -> np.ndarray:
    """`answer_loss` of one right answer to each problem, given at once, the same for every model."""
    rng = np.random.default_rng(0)
    prompts = [as_text(task.prompt(p, prompt_style), tokenizer) for p in problems]
    answers = [as_text(task.answer(p, prompt_style, rng), tokenizer, answer=True) for p in problems]
    return answer_loss(model, tokenizer, prompts, answers, batch_size)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    split: str,
    prompt_style: str,
    max_new_tokens: int,
    batch_size: int = 512,
    loss: bool = False,
    every: int = 1,
    attempts: int = 1,
    generator: str = "auto",
) -> pd.DataFrame:
    """Greedy answers to EVERY problem of a split (or each `every`-th), judged: problem, outcome, tries, reward, loss.

    `outcome` is that of the last attempt, `tries` how many that took, `reward` the last attempt's, as are the task's
    further measures, a column each. `loss` (nats a token; NaN if not asked for) is that of `right_answer_loss`.
    """
    problems = task.split(split)[::every]
    episodes = play(
        model, tokenizer, task, problems, prompt_style, max_new_tokens, attempts, batch_size, generator=generator
    )
    losses = right_answer_loss(model, tokenizer, task, problems, prompt_style, batch_size) if loss else None
    return _judged(task, episodes, losses)


def _judged(task: Task, episodes: Sequence[Episode], losses: np.ndarray | None = None) -> pd.DataFrame:
    """A row an episode, as `evaluate` has them."""
    last = [e.verdicts[-1] for e in episodes]
    losses = np.full(len(last), np.nan) if losses is None else losses
    return pd.DataFrame(
        {
            "problem": [task.label(e.problem) for e in episodes],
            "outcome": pd.Categorical([v.outcome for v in last], categories=OUTCOMES),
            "tries": np.int8([len(e.verdicts) for e in episodes]),
            "reward": np.float32([v.reward for v in last]),
            "loss": losses.astype(np.float32),
            **{name: [v.measures[name] for v in last] for name in last[0].measures},
        }
    )


def evaluate_model(
    config: Config,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    place: tuple[str, str, int, int, int],
    loss: bool = False,
    probes: bool = False,
) -> dict[str, pd.DataFrame]:
    """Every split for a model in memory, as the tables `measurements` and `hands`.

    `probes`: also the task's probes and clozes, of which there are only `measurements`.

    place: what the tables call it, (stage, arm, from_step, step, seed).
    """
    task = get_task(config.task.name, config.task.options)
    style, size = config.task.prompt_style, config.machine.eval_batch_size
    names = (*task.splits.names, *(probe.name for probe in task.splits.probes if probes))
    problems = {name: task.split(name)[:: config.eval.every] for name in names}
    everything = [problem for several in problems.values() for problem in several]  # at once, so that batches are full
    longest, attempts = config.task.max_new_tokens, config.eval.attempts
    played = iter(
        play(model, tokenizer, task, everything, style, longest, attempts, size, generator=config.machine.generator)
    )
    rows, hands = [], []
    for split, several in problems.items():
        probed, losses = split not in task.splits.names, None
        if loss and not probed:
            losses = right_answer_loss(model, tokenizer, task, several, style, size)
        judged = _judged(task, [next(played) for _ in several], losses)
        metrics = summarise(judged, config.eval.attempts)
        rows += [(*place, split, metric, value, len(judged)) for metric, value in metrics.items()]
        if not probed:
            hands.append(judged.assign(**dict(zip(KEYS, (*place, split), strict=True))))
    if probes and hasattr(task, "clozes"):
        rows += [(*place, *row) for row in beliefs(model, tokenizer, task, config.task.prompt_style)]
    return {"measurements": as_measurements(rows), "hands": pd.concat(hands, ignore_index=True)}


def beliefs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, prompt_style: str
) -> list[tuple[str, str, float, int]]:
    """What the model believes that symbols count for, from the task's clozes: rows of split, metric, value, n.

    split: cloze_RULE, the rule that the prompt states. metric: SYMBOL=VALUE. value: the probability, the mean of n
    clozes.
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    clozes = task.clozes(prompt_style)
    contexts = [as_text(cloze.prompt, tokenizer) + cloze.begun for cloze in clozes]
    every = continuation_probabilities(model, tokenizer, contexts, list(clozes[0].values.values()))
    for cloze, chances in zip(clozes, every, strict=True):
        found.setdefault((cloze.split, cloze.symbol), []).append(chances)
    return [
        (split, f"{symbol}={value}", chance, len(several))
        for (split, symbol), several in found.items()
        for value, chance in zip(clozes[0].values, torch.stack(several).mean(0).tolist(), strict=True)
    ]


def summarise(hands: pd.DataFrame, attempts: int = 1) -> dict[str, float]:
    """The metrics of one evaluation: accuracy, the share of each outcome, mean reward, and loss if measured.

    The task's further measures are shares too. `accuracy` counts any right attempt; with several also accuracy@1, @2,
    …: right by the first, the second, …
    """
    right = hands["outcome"] == "correct"
    metrics = {"accuracy": float(right.mean())}
    if attempts > 1:
        metrics |= {f"accuracy@{n}": float((right & (hands["tries"] <= n)).mean()) for n in range(1, attempts + 1)}
    metrics |= {outcome: float((hands["outcome"] == outcome).mean()) for outcome in OUTCOMES[1:]}
    metrics |= {name: float(hands[name].mean()) for name in hands.columns.difference(OWN, sort=False)}
    metrics["reward"] = float(hands["reward"].mean())
    if hands["loss"].notna().all():
        metrics["loss"] = float(hands["loss"].mean())
    return metrics
