"""Reinforcement learning on ID problems with the checker's reward: TRL's GRPO (Shao et al. 2024) or RLOO, or PPO.

Every reward and advantage is kept (claim C6). With several attempts an episode, only the model's own tokens carry
loss; GRPO's reward of an episode is the discounted sum of its attempts' rewards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from oodlib.config import Config
from oodlib.inference.episodes import discounted
from oodlib.models.loading import sharded
from oodlib.tasks import Verdict
from oodlib.training.ppo import PPOTrainer
from oodlib.training.setup import Setup
from oodlib.training.trainer import MARK, arm_settings, rank, world

ROLLOUTS = "rollouts.parquet"  # in a checkpoint's folder: all samples up to it
Score = Callable[[list[list[Verdict]], np.random.Generator], list[list[float]]]  # verdicts -> rewards, one an attempt


def checker_rewards(verdicts: list[list[Verdict]], _: np.random.Generator) -> list[list[float]]:
    """The checker's own rewards."""
    return [[v.reward for v in attempts] for attempts in verdicts]


def make_trainer(setup: Setup, score: Score = checker_rewards) -> Trainer:
    """The trainer of `rl.algorithm`; `score` pays for the attempts of a batch of episodes."""
    config = setup.config
    record = Record(setup, score)
    if config.rl.algorithm == "ppo":
        return PPOTrainer(setup, record)
    problems = setup.problems()
    prompts = [setup.task.prompt(p, config.task.prompt_style) for p in problems]
    data = Dataset.from_dict({"prompt": prompts, "index": list(range(len(problems)))})
    grpo = config.rl.algorithm == "grpo"
    trainer, arguments = (GRPOTrainer, GRPOConfig) if grpo else (RLOOTrainer, RLOOConfig)
    options = arm_settings(setup)
    options |= {
        "steps_per_generation": config.rl.updates_per_batch * options["gradient_accumulation_steps"],
        "num_iterations": config.rl.epochs,
        "num_generations": config.rl.samples,
        "max_completion_length": config.task.max_new_tokens,
        "temperature": config.rl.temperature,
        "epsilon": config.rl.clip,
        "beta": config.rl.kl,
        "shuffle_dataset": False,
        **config.rl.options,
    }
    several, vllm = config.rl.attempts > 1, config.rl.attempts == 1 and by_vllm(config)
    if vllm:
        options |= {"use_vllm": True, "vllm_mode": "colocate"}
    # Where the model is sharded only TRL gathers the weights to generate.
    ours = several or (grpo and setup.model.device.type != "cpu" and not vllm and not sharded())
    return trainer(
        model=setup.model,
        reward_funcs=_Reward(record, problems),
        args=arguments(**options),
        train_dataset=data,
        processing_class=setup.tokenizer,
        callbacks=[record.keeper],
        **({"rollout_func": _Rollouts(setup, prompts, problems)} if ours else {}),
    )


def by_vllm(config: Config) -> bool:
    """Whether vLLM generates in RL with one attempt: as `machine.generator` says; auto: where there is a GPU and vLLM."""
    possible, generator = find_spec("vllm") is not None and torch.cuda.is_available(), config.machine.generator
    if generator == "vllm" and not possible:
        raise ValueError("machine.generator 'vllm' needs a GPU and the package vllm: pip install vllm; or take 'auto'")
    chosen = possible and generator in ("auto", "vllm")
    if chosen:
        print("rollouts by vLLM")
    return chosen


class _Rollouts:
    """TRL's rollout function: an episode for each prompt that it is given, answered by oodlib/inference/generation.py."""

    def __init__(self, setup: Setup, prompts: list[Any], problems: list[Any]):
        self.setup = setup
        self.problems = {json.dumps(prompt): problem for prompt, problem in zip(prompts, problems, strict=True)}

    def __call__(self, prompts: list[Any], trainer: Trainer) -> dict[str, list[Any]]:
        problems = [self.problems[json.dumps(p)] for p in prompts]
        episodes = self.setup.play(problems, trainer.accelerator.unwrap_model(trainer.model))
        return {
            "prompt_ids": [e.prompt for e in episodes],
            "completion_ids": [e.tokens for e in episodes],
            "env_mask": [e.own for e in episodes],
            "logprobs": None,
            "verdicts": [e.verdicts for e in episodes],
            "answers": [e.answers for e in episodes],
        }


class _Reward:
    """A TRL reward function over the record's."""

    __name__ = "checker"

    def __init__(self, record: Record, problems: list[Any]):
        self.record, self.problems = record, problems

    def __call__(self, prompts, completions, index, trainer_state, verdicts=None, answers=None, **_) -> list[float]:
        problems = [self.problems[i] for i in index]
        if verdicts is None:
            answers = [[c if isinstance(c, str) else c[-1]["content"]] for c in completions]
            verify = self.record.setup.task.verify
            verdicts = [[verify(p, a)] for p, (a,) in zip(problems, answers, strict=True)]
        step, mine = trainer_state.global_step, len(problems)
        if world() > 1:  # a group's answers may lie in several processes
            problems, index, verdicts, answers = map(gather_object, (problems, index, verdicts, answers))
        returns = discounted(self.record.rewards(verdicts, step), self.record.setup.config.rl.discount)
        found = advantages(returns, self.record.setup.config)
        self.record.add(step, problems, index, verdicts, answers, returns, found)
        return returns[rank() * mine : (rank() + 1) * mine].tolist()


class Record:
    """What was sampled, paid and learnt from in RL, by all processes; `keeper` lays it down beside the checkpoints."""

    def __init__(self, setup: Setup, score: Score):
        self.setup, self.score, self.frames = setup, score, []
        self.keeper = _Keeper(self)

    def rewards(self, verdicts: list[list[Verdict]], step: int) -> list[list[float]]:
        """What the attempts of a batch of episodes are paid; the same again for the same step."""
        return self.score(verdicts, np.random.default_rng([self.setup.seed, 3, step]))

    def add(self, step, problems, groups, verdicts, answers, returns, advantages) -> None:
        """A row an episode: its last answer and outcome, how many attempts it took, its return and (first) advantage."""
        frame = {
            "update": step,
            "problem": [self.setup.task.label(p) for p in problems],
            "group": groups,
            "answer": [attempts[-1] for attempts in answers],
            "outcome": [attempts[-1].outcome for attempts in verdicts],
            "tries": np.int8([len(attempts) for attempts in verdicts]),
            "reward": np.float32(returns),
            "advantage": np.float32(advantages),
        }
        self.frames.append(pd.DataFrame(frame))


def advantages(returns: np.ndarray, config) -> np.ndarray:
    """GRPO's or RLOO's advantages of returns [groups * rl_samples], a group's side by side; same shape.

    GRPO: (return - group mean) / (group standard deviation + 1e-4). RLOO: the return less the mean of the
    group's others.
    """
    groups = returns.reshape(-1, config.rl.samples)
    if config.rl.algorithm == "rloo":
        others = (groups.sum(1, keepdims=True) - groups) / (config.rl.samples - 1)
        return (groups - others).ravel()
    centred = groups - groups.mean(1, keepdims=True)
    return (centred / (groups.std(1, ddof=1, keepdims=True) + 1e-4)).ravel()


class _Keeper(TrainerCallback):
    """Lays the samples seen so far beside each checkpoint, and takes them up again after an interruption."""

    def __init__(self, record: Record):
        self.record = record

    def on_train_begin(self, args, state, control, **_):
        earlier = self.record.setup.folder / f"checkpoint-{state.global_step}" / ROLLOUTS
        if earlier.exists():
            self.record.frames = [pd.read_parquet(earlier)]

    def on_save(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        folder = self.record.setup.folder / f"checkpoint-{state.global_step}"
        assert not (folder / MARK).exists(), "samples must be laid down before the checkpoint counts as whole"
        pd.concat(self.record.frames, ignore_index=True).to_parquet(folder / ROLLOUTS, index=False)
