"""Reinforcement learning on ID problems with the checker's reward: TRL's GRPO (Shao et al. 2024) or RLOO, or PPO.

Every reward and advantage is kept (claim C6). With several attempts an episode, only the model's own tokens carry
loss; GRPO's reward of an episode is the discounted sum of its attempts' rewards.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from oodlib.config import Config
from oodlib.inference.episodes import discounted
from oodlib.models.loading import sharded
from oodlib.training.ppo import PPOTrainer
from oodlib.training.record import Record, Score, checker_rewards
from oodlib.training.setup import Setup
from oodlib.training.trainer import arm_settings, rank, world

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def make_trainer(setup: Setup, score: Score = checker_rewards) -> Trainer:
    """The trainer of `rl.algorithm`; `score` pays for the attempts of a batch of episodes."""
    record = Record(setup, score)
    return PPOTrainer(setup, record) if setup.config.rl.algorithm == "ppo" else group_trainer(setup, record)


def group_trainer(setup: Setup, record: Record) -> Trainer:
    """TRL's GRPO or RLOO: several answers to each ID problem, each paid by the checker, compared within their group."""
    problems = setup.problems()
    prompts = [setup.task.prompt(p, setup.config.task.prompt_style) for p in problems]
    options, rollouts = group_options(setup), _Rollouts(setup, prompts, problems)
    trainer, arguments = TRAINERS[setup.config.rl.algorithm]
    return trainer(
        model=setup.model,
        reward_funcs=_Reward(record, problems),
        args=arguments(**options),
        train_dataset=Dataset.from_dict({"prompt": prompts, "index": list(range(len(problems)))}),
        processing_class=setup.tokenizer,
        callbacks=[record.keeper],
        **({"rollout_func": rollouts} if _plays_here(setup, options) else {}),
    )


def group_options(setup: Setup) -> dict[str, Any]:
    """What a run's settings mean in TRL's configuration of GRPO and RLOO."""
    config, options = setup.config, arm_settings(setup)
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
    if config.rl.attempts == 1 and by_vllm(config):
        options |= {"use_vllm": True, "vllm_mode": "colocate"}
    return options


def _plays_here(setup: Setup, options: dict[str, Any]) -> bool:
    """Whether episodes are played by this project: with several attempts, and by GRPO on a GPU without vLLM.

    Not where the model is sharded, for there only TRL gathers the weights to generate.
    """
    on_gpu = setup.config.rl.algorithm == "grpo" and setup.model.device.type != "cpu"
    return setup.config.rl.attempts > 1 or (on_gpu and not options.get("use_vllm") and not sharded())


def by_vllm(config: Config) -> bool:
    """Whether vLLM generates in RL with one attempt: as `machine.generator` says; auto: on a GPU that has it."""
    installed, wanted = find_spec("vllm") is not None, config.machine.generator
    if wanted == "vllm" and not (installed and torch.cuda.is_available()):
        raise ValueError("machine.generator 'vllm' needs a GPU and the package vllm: pip install vllm; or take 'auto'")
    chosen = wanted == "vllm" or (wanted == "auto" and installed and torch.cuda.is_available())
    if chosen:
        print("rollouts by vLLM")
    return chosen


class _Rollouts:
    """TRL's rollout function: an episode for each prompt that it is given."""

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
