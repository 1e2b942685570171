"""Evaluation: what a model answers on every problem of a split, and how likely it finds a right answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.tasks import OUTCOMES, Task


def as_text(messages: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, answer: bool = False) -> str:
    """Plain text of a prompt or an answer: text as it is, chat messages through the chat template."""
    if isinstance(messages, str):
        return messages
    if answer:
        return messages[-1]["content"]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    batch_size: int = 512,
    temperature: float = 0.0,
) -> list[str]:
    """One completion a prompt: greedy at temperature 0, else sampled with torch's global random state.

    Prompts of like length share a batch; the order of the results is that of the prompts.
    """
    model.eval()
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    order = np.argsort(lengths, kind="stable")
    completions = [""] * len(prompts)
    for start in range(0, len(prompts), batch_size):
        picked = order[start : start + batch_size]
        batch = tokenizer([prompts[i] for i in picked], return_tensors="pt", padding=True, padding_side="left")
        batch = batch.to(model.device)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        new = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(picked, new, strict=True):
            completions[i] = text
    return completions


@torch.inference_mode()
def answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    answers: list[str],
    batch_size: int = 512,
) -> np.ndarray:
    """The mean negative log-likelihood a token (nats) of each answer, its end token included."""
    model.eval()
    losses = np.empty(len(prompts))
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
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        nll = nll * scored[:, 1:]
        losses[chosen] = (nll.sum(1) / scored.sum(1)).cpu().numpy()
    return losses


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
) -> pd.DataFrame:
    """Greedy answers to EVERY problem of a split (or each `every`-th), judged: problem, outcome, reward, loss.

    `loss` (nats a token; NaN if not asked for) is that of one right answer a problem, the same answer
    for every model.
    """
    problems = task.split(split)[::every]
    prompts = [as_text(task.prompt(p, prompt_style), tokenizer) for p in problems]
    texts = generate(model, tokenizer, prompts, max_new_tokens, batch_size)
    verdicts = [task.verify(p, t) for p, t in zip(problems, texts, strict=True)]
    losses = np.full(len(problems), np.nan)
    if loss:
        rng = np.random.default_rng(0)
        answers = [as_text(task.answer(p, prompt_style, rng), tokenizer, answer=True) for p in problems]
        losses = answer_loss(model, tokenizer, prompts, answers, batch_size)
    return pd.DataFrame(
        {
            "problem": [task.label(p) for p in problems],
            "outcome": pd.Categorical([v.outcome for v in verdicts], categories=OUTCOMES),
            "reward": np.float32([v.reward for v in verdicts]),
            "loss": losses.astype(np.float32),
        }
    )


def summarise(hands: pd.DataFrame) -> dict[str, float]:
    """The metrics of one evaluation: accuracy, the share of each outcome, mean reward, and loss if measured."""
    metrics = {"accuracy": float((hands["outcome"] == "correct").mean())}
    metrics |= {outcome: float((hands["outcome"] == outcome).mean()) for outcome in OUTCOMES[1:]}
    metrics["reward"] = float(hands["reward"].mean())
    if hands["loss"].notna().all():
        metrics["loss"] = float(hands["loss"].mean())
    return metrics
