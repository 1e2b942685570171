"""How sure a model is: of an answer token by token, of given continuations; and where two models' answers part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.inference.episodes import generate
from oodlib.inference.generation import read_once, shared_beginning

AT_ONCE = 8  # texts whose continuations are read together


@dataclass(frozen=True)
class Said:
    """A greedy answer to a prompt.

    Attributes:
        tokens: the answer's tokens as text, the end token included where it fits in.
        sure: for each, the probability that the model gave it.
        choices: at each place, the probability of every word of the vocabulary [tokens, words].
    """

    text: str
    tokens: list[str]
    sure: list[float]
    choices: Tensor


@torch.inference_mode()
def say(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_new_tokens: int) -> Said:
    """The model's greedy answer to a prompt, with the probabilities behind it."""
    text = generate(model, tokenizer, [prompt], max_new_tokens)[0]
    asked = tokenizer(prompt)["input_ids"]
    given = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id][:max_new_tokens]
    ids = torch.tensor([[*asked, *given]], device=model.device)
    choices = model(input_ids=ids).logits[0, len(asked) - 1 : -1].float().softmax(-1).cpu()
    sure = choices[torch.arange(len(given)), torch.tensor(given)].tolist()
    return Said(text, [tokenizer.decode([i]) for i in given], sure, choices)


@torch.inference_mode()
def continuation_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contexts: Sequence[str], continuations: Sequence[str]
) -> Tensor:
    """The probability of each continuation of each text, among these [contexts, continuations].

    A continuation's probability is the product of its tokens'; none may be the beginning of another. What all texts
    begin with is read once.
    """
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in continuations]
    ids = pad_sequence([torch.tensor(t) for t in tokens], batch_first=True).to(model.device)
    written = torch.arange(ids.shape[1]) < torch.tensor([[len(t)] for t in tokens])
    found = []
    for start in range(0, len(contexts), AT_ONCE):
        given = tokenizer(list(contexts[start : start + AT_ONCE]), add_special_tokens=False)["input_ids"]
        shared = len(alike := shared_beginning(given))
        cache = read_once(model, alike, len(given)) if shared else None
        width = max(map(len, given)) - shared  # padded on the left, after the beginning
        rest = torch.tensor([[0] * (width + shared - len(g)) + g[shared:] for g in given], device=model.device)
        read = torch.tensor([[1] * shared + [0] * (width + shared - len(g)) + [1] * (len(g) - shared) for g in given])
        read = read.to(model.device)
        places = (read.cumsum(1) - 1).clamp(min=0)
        first = model(
            input_ids=rest,
            attention_mask=read,
            position_ids=places[:, shared:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits, targets = first.logits.repeat_interleave(len(ids), 0), ids.repeat(len(given), 1)
        if ids.shape[1] > 1:
            first.past_key_values.batch_repeat_interleave(len(ids))
            mask, last = (x.repeat_interleave(len(ids), 0) for x in (read, places[:, -1:]))
            later = model(
                input_ids=targets[:, :-1],
                attention_mask=torch.cat([mask, torch.ones_like(targets[:, :-1])], 1),
                position_ids=last + torch.arange(1, ids.shape[1], device=model.device),
                past_key_values=first.past_key_values,
            )
            logits = torch.cat([logits, later.logits], 1)
        log_probs = logits.float().log_softmax(-1).gather(2, targets[..., None])[..., 0].cpu()
        found.append((log_probs * written.repeat(len(given), 1)).sum(1).reshape(len(given), -1).softmax(1))
    return torch.cat(found)


def parting(one: Said, other: Said) -> int | None:
    """The place of the first token in which two answers differ; None if they are the same."""
    places = zip(one.tokens, other.tokens, strict=False)
    found = next((i for i, (a, b) in enumerate(places) if a != b), None)
    same_length = len(one.tokens) == len(other.tokens)
    return found if found is not None or same_length else min(len(one.tokens), len(other.tokens))


def likeliest(said: Said, place: int, tokenizer: PreTrainedTokenizerBase, count: int = 4) -> dict[str, float]:
    """The most probable words at a place of an answer, with their probabilities."""
    top = said.choices[place].topk(count)
    return {tokenizer.decode([i]): p for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
