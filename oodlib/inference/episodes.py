"""Episodes: a player's attempts at one problem; after a wrong one the checker's message comes back.

Success is any right attempt (arXiv:2509.12235; up to 5 tries there, in RL and in evaluation). All episodes of a batch
are played side by side, those that are over take no more time, and nothing is read twice: n attempts take about n
times as long as one, or less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.inference.generation import make_generator
from oodlib.tasks import Task, Verdict


@dataclass
class Episode:
    """One problem's attempts so far.

    Attributes:
        prompt: tokens of the question.
        tokens: all tokens after it, the player's answers and the checker's messages in turn.
        own: for each of `tokens`, 1 where the player said it, else 0.
        starts: for each attempt, how many of `tokens` come before it.
        verdicts: the checker's, one an attempt.
    """

    problem: Any
    text: str  # all that was said so far, the question included
    messages: list[dict[str, str]] | None  # the same as chat messages, in the chat style
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    @property
    def solved(self) -> bool:
        return bool(self.verdicts) and self.verdicts[-1].outcome == "correct"


def discounted(rewards: list[list[float]], discount: float) -> np.ndarray:
    """The return of each episode, the sum over its attempts t (from 0) of discount^t times the reward."""
    return np.array([sum(discount**t * r for t, r in enumerate(attempts)) for attempts in rewards])


def play(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: list[Any],
    style: str,
    max_new_tokens: int,
    attempts: int = 1,
    batch_size: int = 512,
    temperature: float = 0.0,
    generator: str = "auto",
) -> list[Episode]:
    """An episode of up to `attempts` attempts at each problem, in their order; greedy at temperature 0."""
    episodes = [_ask(tokenizer, task, problem, style) for problem in problems]
    for chunk in _chunks([len(e.prompt) for e in episodes], batch_size):
        playing = [episodes[i] for i in chunk]
        contexts = [e.prompt for e in playing]
        dialogues = make_generator(generator, model, tokenizer, contexts, max_new_tokens, temperature)
        for attempt in range(attempts):
            if attempt:
                left = [i for i, e in enumerate(playing) if not e.solved]
                playing = [playing[i] for i in left]
                if not playing:
                    break
                dialogues.extend(left, [_reply(e, tokenizer, task, style) for e in playing])
            for episode, ids in zip(playing, dialogues.answer(), strict=True):
                answer = tokenizer.decode(ids, skip_special_tokens=True)
                episode.starts.append(len(episode.tokens))
                episode.tokens += ids
                episode.own += [1] * len(ids)
                episode.answers.append(answer)
                episode.verdicts.append(task.verify(episode.problem, answer))
    return episodes


def _chunks(lengths: list[int], size: int) -> Iterator[np.ndarray]:
    """Indices in batches of like length."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _ask(tokenizer: PreTrainedTokenizerBase, task: Task, problem: Any, style: str) -> Episode:
    prompt = task.prompt(problem, style)
    text = as_text(prompt, tokenizer)
    messages = None if isinstance(prompt, str) else list(prompt)
    return Episode(problem, text, messages, tokenizer(text, add_special_tokens=messages is None)["input_ids"])


def _reply(episode: Episode, tokenizer: PreTrainedTokenizerBase, task: Task, style: str) -> list[int]:
    """Add the checker's message on the last attempt, with what the chat format puts between two answers; its tokens."""
    said = task.feedback(episode.problem, episode.verdicts[-1], style)
    ended = episode.tokens[-1:] == [tokenizer.eos_token_id]
    if episode.messages is None:
        between = said
        new = [] if ended else [tokenizer.eos_token_id]
    else:
        before = episode.text + episode.answers[-1]
        episode.messages += [{"role": "assistant", "content": episode.answers[-1]}, *said]
        whole = as_text(episode.messages, tokenizer)
        if not whole.startswith(before):
            raise ValueError(
                "this model's chat template changes earlier messages when new ones come, so several attempts cannot be "
                "told apart in it: use eval.attempts 1"
            )
        between, new = whole[len(before) :], []
        if ended:
            between = between.removeprefix(tokenizer.eos_token)
        episode.text = whole
    new = new + tokenizer(between, add_special_tokens=False)["input_ids"]
    episode.tokens += new
    episode.own += [0] * len(new)
    return new


def as_text(messages: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, answer: bool = False) -> str:
    """Plain text of a prompt or an answer: text as it is, chat messages through the chat template."""
    if isinstance(messages, str):
        return messages
    if answer:
        return messages[-1]["content"]
    if getattr(tokenizer, "chat_template", "") is None:
        raise ValueError(
            "task.prompt_style chat needs a model whose tokenizer has a chat template, and this one has none: take an "
            "instruct model, or compact"
        )
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    batch_size: int = 512,
    temperature: float = 0.0,
    generator: str = "auto",
) -> list[str]:
    """One answer a prompt, as text, in their order; greedy at temperature 0."""
    contexts = [tokenizer(p)["input_ids"] for p in prompts]
    answers = [""] * len(prompts)
    for chunk in _chunks([len(c) for c in contexts], batch_size):
        mine = [contexts[i] for i in chunk]
        dialogues = make_generator(generator, model, tokenizer, mine, max_new_tokens, temperature)
        for i, ids in zip(chunk, dialogues.answer(), strict=True):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return answers
