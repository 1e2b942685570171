"""Engines: how a batch of dialogues is answered. Each is a Speaker; which one is fastest depends on the machine.

`dynamic` keeps keys and values between tries and is the one for a CPU. `static` (a cache of fixed size, for which
transformers compiles the model on a GPU) and `continuous` (transformers' continuous batching: paged keys and values,
and no answer waits for the longest) read a dialogue anew at each try. Greedy answers are the same but for rounding.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

TRIED = 128  # dialogues that engines are timed on
PAGE = 256  # tokens in a page of continuous batching, transformers' own choice
_chosen: dict[tuple, str] = {}  # by model and machine: the engine that was fastest


class Speaker:
    """A model in a batch of dialogues. What was said before is kept as keys and values, not read again.

    Greedy at temperature 0, else sampled with torch's global random state. Between the parts of a dialogue stands
    padding, which attention and positions leave out.
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
        self.cache = None
        self.ids, self.mask = self._block(contexts)

    @torch.inference_mode()
    def answer(self) -> list[list[int]]:
        """What the model adds to each dialogue, its end token included where it came to one."""
        was_training = self.model.training
        self.model.eval()
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
        spoken = torch.zeros_like(self.ids[:, width:])
        for row, answer in enumerate(answers):
            spoken[row, : len(answer)] = 1
        self.mask = torch.cat([self.mask, spoken], 1)
        return answers

    @torch.inference_mode()
    def hear(self, kept: list[int], said: list[list[int]]) -> None:
        """Go on with some of the dialogues only, each with other tokens added."""
        ids, mask = self._block(said)
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


class StaticSpeaker(Speaker):
    """One that reads the whole dialogue at each try, into a cache of fixed size."""

    def __init__(self, model: Any, tokenizer: Any, contexts: list[list[int]], *options: Any):
        super().__init__(model, tokenizer, contexts, *options)
        self.options["cache_implementation"] = "static"
        self.contexts = contexts

    def answer(self) -> list[list[int]]:
        self.cache = None
        self.ids, self.mask = self._block(self.contexts)
        answers = super().answer()
        self.contexts = [c + a for c, a in zip(self.contexts, answers, strict=True)]
        return answers

    def hear(self, kept: list[int], said: list[list[int]]) -> None:
        self.contexts = [self.contexts[i] + new for i, new in zip(kept, said, strict=True)]


class ContinuousSpeaker(StaticSpeaker):
    """One whose dialogues are scheduled by transformers' continuous batching; sampling's seed comes from torch's."""

    @torch.no_grad()  # it works in a thread of its own, where tensors made in inference mode may not be written
    def answer(self) -> list[list[int]]:
        was_training = self.model.training
        self.model.eval()
        options = {name: value for name, value in self.options.items() if name != "cache_implementation"}
        seed = int(torch.randint(2**31, ())) if options["do_sample"] else 0
        longest = max(map(len, self.contexts)) + options["max_new_tokens"]
        blocks = len(self.contexts) * -(-longest // PAGE)  # not what it would take by itself: 90 % of the memory left
        said = self.model.generate_batch(
            self.contexts,
            generation_config=GenerationConfig(eos_token_id=self.end, **options),
            continuous_batching_config=ContinuousBatchingConfig(seed=seed, page_size=PAGE, num_blocks=blocks),
        )
        self.model.train(was_training)
        numbered = sorted(said.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        failed = [answer.error for _, answer in numbered if answer.error]
        if failed or len(numbered) != len(self.contexts):
            raise RuntimeError(f"continuous batching: {len(numbered)} of {len(self.contexts)} answers, {failed[:1]}")
        answers = [self._until_end(list(answer.generated_tokens)) for _, answer in numbered]
        self.contexts = [c + a for c, a in zip(self.contexts, answers, strict=True)]
        return answers


ENGINES = {"dynamic": Speaker, "static": StaticSpeaker, "continuous": ContinuousSpeaker}


def choose(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[list[int]],
    max_new_tokens: int,
    wanted: str = "auto",
) -> str:
    """The engine's name: `wanted`, or with "auto" the fastest on this machine, timed once a process and printed.

    On a CPU that is "dynamic" (measured: tests/benchmarks/evaluation.py), with no trial. On a GPU each answers TRIED
    of the contexts twice, and the second time counts; one that fails is left out, with its error printed.
    """
    if wanted in ENGINES:
        return wanted
    if model.device.type == "cpu":
        return "dynamic"
    place = (type(model).__name__, model.num_parameters(), str(model.device), max_new_tokens)
    if place not in _chosen:
        seconds = {}
        for name, kind in ENGINES.items():
            try:
                for _ in range(2):
                    start = time.perf_counter()
                    kind(model, tokenizer, contexts[:TRIED], max_new_tokens).answer()
                    seconds[name] = time.perf_counter() - start
            except Exception as error:  # whatever an engine of transformers raises on this machine
                seconds.pop(name, None)
                print(f"answers by the engine {name!r} are not to be had here: {type(error).__name__}: {error}")
        if not seconds:
            raise RuntimeError("no engine can answer on this machine; the errors are above")
        _chosen[place] = min(seconds, key=seconds.get)
        times = ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items())
        print(f"answers by the engine {_chosen[place]!r} ({times} for {len(contexts[:TRIED])} answers)")
    return _chosen[place]
