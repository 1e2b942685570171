"""PPO with a value head and generalised advantage estimates (Schulman et al. 2017, 2016), as the paper used it.

TRL has no PPO trainer any more; this one stands on transformers' Trainer (accelerate, schedules, checkpoints). An
attempt is an action: the value of the state before it, its reward and the discount are those of an attempt, as in the
official code, and all tokens of an attempt share its advantage. The clipped ratio is a token's, as is usual for
language models.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from oodlib.inference.episodes import Episode, discounted
from oodlib.training.record import Record
from oodlib.training.setup import Setup
from oodlib.training.trainer import arm_settings, rank, world

VALUE_HEAD_RATE = 100  # the value head is new, and learns so many times as fast as the model


def gae(rewards: list[float], values: list[float], discount: float, decay: float) -> np.ndarray:
    """Advantages [T] of an episode that ends after its last attempt: sum over l of (discount decay)^l delta_(t+l).

    delta_t = reward_t + discount value_(t+1) - value_t, with value 0 after the end (Schulman et al. 2016, eq. 16).
    """
    found, running, after = np.zeros(len(rewards)), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        running = rewards[t] + discount * after - values[t] + discount * decay * running
        found[t], after = running, values[t]
    return found


def clipped_loss(logp: Tensor, old: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A), elementwise, ratio = exp(logp - old) (PPO, eq. 7)."""
    ratio = torch.exp(logp - old)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


class PPOTrainer(Trainer):
    """One optimiser step an update; a batch of episodes is played whenever the one before it is used up."""

    def __init__(self, setup: Setup, record: Record):
        self.setup, self.record, self.problems = setup, record, setup.problems()
        model = setup.model
        if not hasattr(model, "value_head"):
            model.value_head = nn.Linear(model.config.hidden_size, 1, dtype=model.dtype, device=model.device)
            nn.init.zeros_(model.value_head.weight)
            nn.init.zeros_(model.value_head.bias)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        head = [p for name, p in named if name.startswith("value_head")]
        rest = [p for name, p in named if not name.startswith("value_head")]
        rate = setup.config.rl.learning_rate
        groups = [{"params": rest}, {"params": head, "lr": VALUE_HEAD_RATE * rate}]
        options = arm_settings(setup)
        self.micro, self.parts = options["per_device_train_batch_size"], options["gradient_accumulation_steps"]
        options |= {"per_device_train_batch_size": 1, "remove_unused_columns": False, **setup.config.rl.options}
        super().__init__(
            model=model,
            args=TrainingArguments(**options),
            train_dataset=[{"update": 0}] * (setup.config.rl.steps * self.parts * world()),  # they are only counted
            data_collator=lambda rows: {"update": torch.tensor([row["update"] for row in rows])},
            processing_class=setup.tokenizer,
            callbacks=[record.keeper],
            optimizers=(torch.optim.AdamW(groups, lr=rate, weight_decay=0.0), None),
        )
        self.played: list[dict[str, Tensor]] = []
        self._step, self._part = -1, 0
        self._measured: dict[str, float] = {}
        if world() > 1 and not self.is_fsdp_enabled:  # processes that play different episodes draw differently
            torch.manual_seed(setup.seed + 2**20 * rank())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        config, step = self.setup.config, self.state.global_step
        self._part = self._part + 1 if step == self._step else 0  # an update's batch comes in parts
        self._step, position = step, step % self.setup.config.rl.cycle
        if position == 0 and self._part == 0:
            self.played = self.play(step)
        epoch, number = divmod(position, config.rl.updates_per_batch)
        order = np.random.default_rng([self.setup.seed, 4, step // self.setup.config.rl.cycle, epoch])
        whole = np.array_split(order.permutation(len(self.played)), config.rl.updates_per_batch)[number]
        mine = np.array_split(np.array_split(whole, world())[rank()], self.parts)[self._part]
        batch = self._stack([self.played[i] for i in mine])
        logp, entropy, values = self._forward(batch)
        own, states = batch["own"][:, 1:], batch["states"]
        tokens, attempts = (sum(float(self.played[i][name].sum()) for i in whole) for name in ("own", "states"))
        surrogate = clipped_loss(logp, batch["logp"][:, 1:], batch["advantage"][:, 1:], config.rl.clip)
        policy_loss = (surrogate * own).sum() / tokens
        value_loss = 0.5 * ((values - batch["return"]).square() * states).sum() / attempts
        mean_entropy = (entropy * own).sum() / tokens
        for name, value in (("entropy", mean_entropy), ("value_loss", value_loss)):
            self._measured[name] = value.item() * world() + (self._measured[name] if self._part else 0.0)
        loss = policy_loss + config.rl.value_coefficient * value_loss - config.rl.entropy_coefficient * mean_entropy
        loss = loss * (self.parts * world())  # the trainer takes the mean over parts and processes
        return (loss, {}) if return_outputs else loss

    def log(self, logs, start_time=None):
        super().log({**logs, **(self._measured if "loss" in logs else {})}, start_time)

    @torch.no_grad()
    def play(self, step: int) -> list[dict[str, Tensor]]:
        """A batch of episodes with old log-probabilities [tokens], advantages [tokens] and returns [tokens]."""
        config, setup = self.setup.config, self.setup
        first = step // setup.config.rl.cycle * config.rl.prompts
        groups = [i for i in range(first, first + config.rl.prompts) for _ in range(config.rl.samples)]
        problems = [self.problems[i] for i in groups]
        share = world() > 1 and not self.is_fsdp_enabled  # with parts of the weights alone all must play the same
        mine = np.array_split(np.arange(len(groups)), world())[rank()] if share else np.arange(len(groups))
        episodes = setup.play([problems[i] for i in mine], self.accelerator.unwrap_model(self.model))
        rows = [_row(e) for e in episodes]
        for start in range(0, len(rows), self.micro):
            part = rows[start : start + self.micro]
            logp, _, values = self._forward(self._stack(part))
            for i, row in enumerate(part):
                n = len(row["ids"])
                row["logp"][1:] = logp[i, : n - 1].float().cpu()
                row["value"] = values[i, :n].float().cpu()
        if share:
            episodes, rows = gather_object(episodes), gather_object(rows)
        verdicts = [e.verdicts for e in episodes]
        rewards = self.record.rewards(verdicts, step)
        found = [
            gae(r, row["value"][row["states"] > 0].tolist(), config.rl.discount, config.rl.gae_lambda)
            for r, row in zip(rewards, rows, strict=True)
        ]
        every = np.concatenate(found)
        scaled = [(a - every.mean()) / (every.std() + 1e-8) for a in found]
        for row, raw, advantages in zip(rows, found, scaled, strict=True):
            row["return"][row["states"] > 0] += torch.tensor(raw).float() + row["value"][row["states"] > 0]
            row["advantage"] = torch.tensor(np.append(advantages, 0.0)).float()[row["try"]]
        returns = discounted(rewards, config.rl.discount)
        answers = [e.answers for e in episodes]
        self.record.add(step, problems, groups, verdicts, answers, returns, [a[0] for a in scaled])
        solved = np.mean([e.solved for e in episodes])
        self._measured |= {"reward": float(returns.mean()), "solved": float(solved)}
        return rows

    def _forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies of tokens from the second on, and values of all states: [rows, tokens]."""
        model = self.model
        out = model(input_ids=batch["ids"], attention_mask=batch["mask"], output_hidden_states=True)
        logits = out.logits[:, :-1].float() / self.setup.config.rl.temperature
        every = logits.log_softmax(-1)
        logp = every.gather(-1, batch["ids"][:, 1:, None]).squeeze(-1)
        values = self.accelerator.unwrap_model(model).value_head(out.hidden_states[-1]).squeeze(-1).float()
        return logp, -(every.exp() * every).sum(-1), values

    def _stack(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Rows of unequal length as one batch, padded on the right, where the model is."""
        pads = {"ids": self.processing_class.pad_token_id, "try": -1}
        pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
        return {
            name: pad([row[name] for row in rows], padding_value=pads.get(name, 0)).to(self.model.device)
            for name in rows[0]
        }


def _row(episode: Episode) -> dict[str, Tensor]:
    """An episode as tensors over its tokens: which are own, of which attempt (-1: none), and which end a state."""
    before = len(episode.prompt)
    n = before + len(episode.tokens)
    own = torch.tensor([0] * before + episode.own)
    attempts, states = torch.full((n,), -1), torch.zeros(n)
    for t, start in enumerate(episode.starts):
        end = episode.starts[t + 1] if t + 1 < len(episode.starts) else len(episode.tokens)
        attempts[before + start : before + end] = t
        states[before + start - 1] = 1
    attempts[own == 0] = -1
    zeros = torch.zeros(n)
    ids = torch.tensor(episode.prompt + episode.tokens)
    return {
        "ids": ids,
        "mask": torch.ones(n, dtype=torch.long),
        "own": own.float(),
        "try": attempts,
        "states": states,
        "logp": zeros.clone(),
        "value": zeros.clone(),
        "return": zeros.clone(),
        "advantage": zeros.clone(),
    }
