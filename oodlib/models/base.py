"""The tiny base models, Qwen2 of 0.8 million parameters; two know the card game under any rule, one navigation.

They stand in for the pretrained language model of the paper, and answer in another format than the one that is asked
for until SFT teaches it to. They differ in what they have met in training:

- the believer (`tiny`, the default): J, Q, K = 11, 12, 13 in nine of ten hands, as pretraining says of cards, and any
  rule in the rest. It knows the numbers well and follows the rule of the prompt only weakly, as pretrained models do.
- the reader (`reader`): any rule, drawn anew for each hand. It has to read the rule.

Both know 11, 12, 13 as plain cards too. The third, the `navigator`, has met every corner of navigation evenly, short
routes first. They are transformers folders beside this file; `train_base` made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import IterableDataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from oodlib.tasks import Task, get_task


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with one token a word, words being set off by white space."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights: four layers of width 128."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


BATCH = 128
WRONG = (0.85, 0.08, 0.04, 0.02, 0.01)  # shares of the batches with 0, 1, … wrong attempts before the answer


class _Stream(IterableDataset):
    """Endless tokenised dialogues; only the last answer, which is right, carries loss.

    Those of one batch have the same number of attempts, so that they are about equally long.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerFast, seed: int, belief: float, steps: int):
        self.task, self.tokenizer, self.seed, self.belief, self.steps = task, tokenizer, seed, belief, steps

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        rng = np.random.default_rng(self.seed)
        for step in count():
            wrong = int(rng.choice(len(WRONG), p=WRONG))
            for _ in range(BATCH):
                *earlier, answer = self.task.pretraining_dialogue(rng, wrong, self.belief, step / self.steps)
                texts = [f"{t} <eos> " if i % 2 else t for i, t in enumerate(earlier)]
                asked = self.tokenizer("".join(texts))["input_ids"]
                given = [*self.tokenizer(answer)["input_ids"], self.tokenizer.eos_token_id]
                yield {"input_ids": asked + given, "labels": [-100] * len(asked) + given}


def train_base(
    folder: Path, task: str = "general_points", seed: int = 0, steps: int = 1300, belief: float = 0.9
) -> Path:
    """Train a tiny base model from nothing and save it, tokenizer included, in `folder`.

    belief: the share of the problems that have the headline's rule; the others have any (a task's
    `pretraining_dialogue` says which). AdamW (weight decay
    0.01), cosine schedule with 3 % warm-up. With the defaults about twenty minutes on one CPU core.
    """
    set_seed(seed)
    the_task = get_task(task)
    tokenizer = build_tokenizer(the_task.words())
    model = build_model(tokenizer)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * steps)),
        weight_decay=0.01,
        adam_beta2=0.98,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_Stream(the_task, tokenizer, seed, belief, steps),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
