"""Reinforcement learning on ID problems with the checker's reward: TRL's GRPO (Shao et al. 2024) or RLOO.

One turn an episode, no KL term. Every reward and advantage is kept (claim C6).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from oodlib.arms import Setup
from oodlib.training import MARK, settings

ROLLOUTS = "rollouts.parquet"  # in a checkpoint's folder: all samples up to it


def make_trainer(setup: Setup) -> Trainer:
    preset = setup.preset
    problems = setup.problems()
    data = Dataset.from_dict(
        {
            "prompt": [setup.task.prompt(p, preset.prompt_style) for p in problems],
            "index": list(range(len(problems))),
        }
    )
    reward = CheckerReward(setup, problems)
    kind, config = (GRPOTrainer, GRPOConfig) if preset.rl_algorithm == "grpo" else (RLOOTrainer, RLOOConfig)
    arguments = config(
        **settings(setup.folder, setup.seed, preset.rl_steps, preset.rl_learning_rate),
        per_device_train_batch_size=setup.batch,
        steps_per_generation=preset.rl_updates_per_batch,
        num_generations=preset.rl_samples,
        max_completion_length=preset.max_new_tokens,
        temperature=preset.rl_temperature,
        epsilon=preset.rl_clip,
        beta=0.0,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=preset.rl_warmup_steps,
        shuffle_dataset=False,
    )
    trainer = kind(
        model=setup.model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=data,
        processing_class=setup.tokenizer,
        callbacks=[reward.keeper],
    )
    return trainer


class CheckerReward:
    """The task's checker as a TRL reward function that remembers what it saw.

    Advantages are GRPO's, (reward - group mean) / (group standard deviation + 1e-4), or RLOO's, the reward
    less the mean of the group's others; a group is the `rl_samples` answers to one prompt.
    """

    __name__ = "checker"

    def __init__(self, setup: Setup, problems: list[Any]):
        self.setup, self.problems, self.frames = setup, problems, []
        self.keeper = _Keeper(self)

    def __call__(self, prompts, completions, index, trainer_state, **_) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        problems = [self.problems[i] for i in index]
        verdicts = [self.setup.task.verify(p, t) for p, t in zip(problems, texts, strict=True)]
        rewards = np.array([v.reward for v in verdicts])
        self.frames.append(
            pd.DataFrame(
                {
                    "update": trainer_state.global_step,
                    "problem": [self.setup.task.label(p) for p in problems],
                    "group": index,
                    "outcome": [v.outcome for v in verdicts],
                    "reward": rewards.astype(np.float32),
                    "advantage": advantages(rewards, self.setup.preset).astype(np.float32),
                }
            )
        )
        return rewards.tolist()


def advantages(rewards: np.ndarray, preset) -> np.ndarray:
    """Advantages of rewards [groups * rl_samples], the samples of a group side by side; same shape."""
    groups = rewards.reshape(-1, preset.rl_samples)
    if preset.rl_algorithm == "rloo":
        others = (groups.sum(1, keepdims=True) - groups) / (preset.rl_samples - 1)
        return (groups - others).ravel()
    centred = groups - groups.mean(1, keepdims=True)
    return (centred / (groups.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()


class _Keeper(TrainerCallback):
    """Lays the samples seen so far beside each checkpoint, and takes them up again after an interruption."""

    def __init__(self, reward: CheckerReward):
        self.reward = reward

    def on_train_begin(self, args, state, control, **_):
        earlier = self.reward.setup.folder / f"checkpoint-{state.global_step}" / ROLLOUTS
        if earlier.exists():
            self.reward.frames = [pd.read_parquet(earlier)]

    def on_save(self, args, state, control, **_):
        folder = self.reward.setup.folder / f"checkpoint-{state.global_step}"
        assert not (folder / MARK).exists(), "samples must be laid down before the checkpoint counts as whole"
        pd.concat(self.reward.frames, ignore_index=True).to_parquet(folder / ROLLOUTS, index=False)
