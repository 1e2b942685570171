"""Generators: how a batch of dialogues is answered.

`dynamic`, the default, keeps keys and values between attempts. `continuous` (transformers' continuous batching: paged
keys and values, and no answer waits for the longest) reads a dialogue anew at each attempt. Greedy answers are the same
but for rounding.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

PAGE = 256  # tokens in a page of continuous batching, transformers' own choice
SHARED = 32  # tokens that contexts must begin with alike, to be read once for all


def shared_beginning(contexts: list[list[int]]) -> list[int]:
    """The tokens that all contexts begin with; none where they are too few to be read apart, or of a single context.

    Of each context a token is left to read.
    """
    both = zip(min(contexts), max(contexts), strict=False)
    alike = [one for one, _ in takewhile(lambda tokens: tokens[0] == tokens[1], both)]
    alike = alike[: min(map(len, contexts)) - 1]
    return alike if len(contexts) > 1 and len(alike) >= SHARED else []


@torch.inference_mode()
def read_once(model: PreTrainedModel, tokens: list[int], rows: int) -> Cache:
    """The keys and values of a beginning, read once and repeated for so many rows."""
    ids = torch.tensor([tokens], device=model.device)
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


class Generator:
    """A model in a batch of dialogues. What came before is kept as keys and values, not read again.

    A long beginning that all dialogues share, such as the rules of a game, is read once. Greedy at temperature 0, else
    sampled with torch's global random state. Attention and positions leave out the padding between the parts of a
    dialogue.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contexts: list[list[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
    ):
        self.model, self.pad, self.end = model, tokenizer.pad_token_id, tokenizer.eos_token_id
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        self.options = {"max_new_tokens": max_new_tokens, "pad_token_id": self.pad, **sampling}
        self.cache, self.contexts = None, contexts
        alike = shared_beginning(contexts)
        self.shared = len(alike)
        ids, mask = self._block([c[self.shared :] for c in contexts])
        beginning = torch.tensor([alike] * len(contexts), dtype=ids.dtype, device=ids.device)
        self.ids, self.mask = torch.cat([beginning, ids], 1), torch.cat([torch.ones_like(beginning), mask], 1)

    @torch.inference_mode()
    def answer(self) -> list[list[int]]:
        """What the model adds to each dialogue, its end token included where it came to one."""
        was_training = self.model.training
        self.model.eval()
        if self.cache is None and self.shared:
            self.cache = read_once(self.model, self.ids[0, : self.shared].tolist(), len(self.ids))
        width = self.ids.shape[1]
        output = self.model.generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            past_key_values=self.cache,
            return_dict_in_generate=True,
            **self.options,
        )
        self.model.train(was_training)
        self.ids, self.cache = output.sequences, output.past_key_values
        answers = [self._until_end(new) for new in output.sequences[:, width:].tolist()]
        written = torch.zeros_like(self.ids[:, width:])
        for row, answer in enumerate(answers):
            written[row, : len(answer)] = 1
        self.mask = torch.cat([self.mask, written], 1)
        return answers

    @torch.inference_mode()
    def extend(self, kept: list[int], new: list[list[int]]) -> None:
        """Continue some of the dialogues only, each with new tokens added."""
        ids, mask = self._block(new)
        rows = torch.tensor(kept, device=ids.device)
        self.cache.batch_select_indices(rows)
        self.ids = torch.cat([self.ids[rows], ids], 1)
        self.mask = torch.cat([self.mask[rows], mask], 1)

    def _until_end(self, new: list[int]) -> list[int]:
        return new[: new.index(self.end) + 1] if self.end in new else new

    def _block(self, parts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Tokens [n, longest], padded on the left, and a mask of those that are none."""
        width = max(map(len, parts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in parts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in parts])
        return ids.to(self.model.device), mask.to(self.model.device)


class ContinuousGenerator(Generator):
    """One whose dialogues are scheduled by transformers' continuous batching; sampling's seed comes from torch's."""

    @torch.no_grad()  # it works in a thread of its own, where tensors made in inference mode may not be written
    def answer(self) -> list[list[int]]:
        was_training = self.model.training
        self.model.eval()
        seed = int(torch.randint(2**31, ())) if self.options["do_sample"] else 0
        longest = max(map(len, self.contexts)) + self.options["max_new_tokens"]
        blocks = len(self.contexts) * -(-longest // PAGE)  # not what it would take by itself: 90 % of the memory left
        results = self.model.generate_batch(
            self.contexts,
            generation_config=GenerationConfig(eos_token_id=self.end, **self.options),
            continuous_batching_config=ContinuousBatchingConfig(seed=seed, page_size=PAGE, num_blocks=blocks),
        )
        self.model.train(was_training)
        numbered = sorted(results.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        failed = [result.error for _, result in numbered if result.error]
        if failed or len(numbered) != len(self.contexts):
            raise RuntimeError(f"continuous batching: {len(numbered)} of {len(self.contexts)} answers, {failed[:1]}")
        answers = [self._until_end(list(result.generated_tokens)) for _, result in numbered]
        self.contexts = [c + a for c, a in zip(self.contexts, answers, strict=True)]
        return answers

    def extend(self, kept: list[int], new: list[list[int]]) -> None:
        self.contexts = [self.contexts[i] + tokens for i, tokens in zip(kept, new, strict=True)]


def make_generator(name: str, *arguments: Any) -> Generator:
    """A generator of `machine.generator`; "auto" (and "vllm", for answers that vLLM does not give) is `dynamic`."""
    return (ContinuousGenerator if name == "continuous" else Generator)(*arguments)
