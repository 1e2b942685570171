"""How sure a model is: of an answer token by token, of given continuations; and where two models' answers part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.inference.episodes import generate


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
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, context: str, continuations: Sequence[str]
) -> Tensor:
    """The probability of each continuation of a text, among these [continuations].

    A continuation's probability is the product of its tokens'; none may be the beginning of another.
    """
    given = tokenizer(context, add_special_tokens=False)["input_ids"]
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in continuations]
    ids = pad_sequence([torch.tensor(t) for t in tokens], batch_first=True).to(model.device)
    read = model(input_ids=torch.tensor([given], device=model.device), use_cache=True, logits_to_keep=1)
    logits = read.logits.expand(len(ids), -1, -1)
    if ids.shape[1] > 1:
        read.past_key_values.batch_repeat_interleave(len(ids))
        later = model(input_ids=ids[:, :-1], past_key_values=read.past_key_values).logits
        logits = torch.cat([logits, later], 1)
    log_probs = logits.float().log_softmax(-1).gather(2, ids[..., None])[..., 0].cpu()
    written = torch.arange(ids.shape[1]) < torch.tensor([[len(t)] for t in tokens])
    return (log_probs * written).sum(1).softmax(0)


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
