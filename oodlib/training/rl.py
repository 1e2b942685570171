"""Reinforcement learning on ID problems with the checker's reward: TRL's GRPO (Shao et al. 2024) or RLOO, or PPO.

Every reward and advantage is kept (claim C6). With several attempts an episode, only the model's own tokens carry
loss; GRPO's reward of an episode is the discounted sum of its attempts' rewards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from oodlib.config import Config
from oodlib.inference.episodes import Episode, discounted
from oodlib.models.loading import sharded
from oodlib.training.ppo import PPOTrainer
from oodlib.training.record import Record, Score, checker_rewards
from oodlib.training.setup import Setup
from oodlib.training.trainer import arm_settings, rank, world

# (advantages, which answers are right, how many tokens of each are learnt) -> what is learnt from in place of the
# advantages; all of them [episodes of a batch]
Weigh = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def make_trainer(setup: Setup, score: Score = checker_rewards) -> Trainer:
    """The trainer of `rl.algorithm`; `score` pays for the attempts of a batch of episodes."""
    record = Record(setup, score)
    return PPOTrainer(setup, record) if setup.config.rl.algorithm == "ppo" else group_trainer(setup, record)


def with_config(setup: Setup, config: Config) -> Setup:
    """A setup with other settings of RL."""
    return replace(setup, config=config)


def group_trainer(setup: Setup, record: Record) -> Trainer:
    """TRL's GRPO or RLOO: several answers to each ID problem, each paid by the checker, compared within their group."""
    return _group_trainer(setup, record, *TRAINERS[setup.config.rl.algorithm])


def weighed_trainer(setup: Setup, weigh: Weigh) -> Trainer:
    """GRPO that learns from `weigh`'s weights of the answers in place of its advantages."""
    return _group_trainer(setup, Record(setup, checker_rewards), WeighedTrainer, GRPOConfig, weigh)


def imitating_trainer(setup: Setup, weigh: Weigh) -> Trainer:
    """The same with SFT's loss: cross-entropy, so weighed, on each episode's last attempt."""
    as_sft = {
        "temperature": 1.0,  # of the loss
        "generation_kwargs": {"temperature": setup.config.rl.temperature},
        "vllm_importance_sampling_correction": False,
    }
    record = Record(setup, checker_rewards)
    trainer = _group_trainer(setup, record, ImitatingTrainer, GRPOConfig, weigh, as_sft, last_attempt)
    trainer.add_callback(_NoGradientNoChange())
    return trainer


def own_tokens(episode: Episode) -> list[int]:
    """1 for each token of an episode that the player said, in any attempt; 0 for the checker's."""
    return episode.own


def last_attempt(episode: Episode) -> list[int]:
    """1 for each token of an episode's last attempt, 0 for those before it."""
    return [int(i >= episode.starts[-1]) for i in range(len(episode.tokens))]


def _group_trainer(
    setup: Setup,
    record: Record,
    trainer: type[Trainer],
    arguments: type,
    weigh: Weigh | None = None,
    others: dict[str, Any] | None = None,
    learnt: Callable[[Episode], list[int]] = own_tokens,
) -> Trainer:
    problems = setup.problems()
    prompts = [setup.task.prompt(p, setup.config.task.prompt_style) for p in problems]
    options, rollouts = group_options(setup) | (others or {}), _Rollouts(setup, prompts, problems, learnt)
    return trainer(
        model=setup.model,
        reward_funcs=_Reward(record, problems, weigh),
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
    """Whether episodes are played by this project: with several attempts, and by GRPO in bfloat16 or on a GPU (TRL
    generates in float32), but for vLLM.

    Not where the model is sharded, for there only TRL gathers the weights to generate.
    """
    faster = setup.config.rl.algorithm == "grpo" and (setup.model.device.type != "cpu" or options["bf16"])
    return setup.config.rl.attempts > 1 or (faster and not options.get("use_vllm") and not sharded())


def by_vllm(config: Config) -> bool:
    """Whether vLLM generates in RL with one attempt: as `machine.generator` says; auto: on a GPU that has it."""
    possible, generator = find_spec("vllm") is not None and torch.cuda.is_available(), config.machine.generator
    if generator == "vllm" and not possible:
        raise ValueError("machine.generator 'vllm' needs a GPU and the package vllm: pip install vllm; or take 'auto'")
    chosen = possible and generator in ("auto", "vllm")
    if chosen:
        print("rollouts by vLLM")
    return chosen


class WeighedTrainer(GRPOTrainer):
    """GRPO that learns from its reward function's weights in place of its own advantages."""

    def _generate_and_score_completions(self, inputs):
        found = super()._generate_and_score_completions(inputs)
        return found | {"advantages": found["advantages"].new_tensor(self.reward_funcs[0].weights)}


class ImitatingTrainer(WeighedTrainer):
    """The same with the probability ratio to the current model: 1, with the gradient of log p, so no clip ever holds"""

    def _generate_and_score_completions(self, inputs):
        found = super()._generate_and_score_completions(inputs)
        return {name: value for name, value in found.items() if name != "old_per_token_logps"}


class _NoGradientNoChange(TrainerCallback):
    """An update whose gradient is 0 changes no weight, which Adam's momentum would do."""

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if not any(p.grad.any() for p in model.parameters() if p.grad is not None):
            model.zero_grad(set_to_none=True)


class _Rollouts:
    """TRL's rollout function: an episode for each prompt that it is given; `learnt` marks the tokens with a loss."""

    def __init__(self, setup: Setup, prompts: list[Any], problems: list[Any], learnt: Callable[[Episode], list[int]]):
        self.setup, self.learnt = setup, learnt
        self.problems = {json.dumps(prompt): problem for prompt, problem in zip(prompts, problems, strict=True)}

    def __call__(self, prompts: list[Any], trainer: Trainer) -> dict[str, list[Any]]:
        problems = [self.problems[json.dumps(p)] for p in prompts]
        episodes = self.setup.play(problems, trainer.accelerator.unwrap_model(trainer.model))
        masks = [self.learnt(e) for e in episodes]
        return {
            "prompt_ids": [e.prompt for e in episodes],
            "completion_ids": [e.tokens for e in episodes],
            "env_mask": masks,
            "tokens": [sum(mask) for mask in masks],
            "logprobs": None,
            "verdicts": [e.verdicts for e in episodes],
            "answers": [e.answers for e in episodes],
        }


class _Reward:
    """A TRL reward function over the record's; `weights`: what the trainer's own answers of the last batch weigh."""

    __name__ = "checker"

    def __init__(self, record: Record, problems: list[Any], weigh: Weigh | None):
        self.record, self.problems, self.weigh, self.weights = record, problems, weigh, np.empty(0)

    def __call__(
        self, prompts, completions, completion_ids, index, trainer_state, verdicts=None, answers=None, tokens=None, **_
    ) -> list[float]:
        problems = [self.problems[i] for i in index]
        if verdicts is None:
            answers = [[c if isinstance(c, str) else c[-1]["content"]] for c in completions]
            verify = self.record.setup.task.verify
            verdicts = [[verify(p, a)] for p, (a,) in zip(problems, answers, strict=True)]
            tokens = [len(ids) for ids in completion_ids]
        step, mine = trainer_state.global_step, slice(rank() * len(problems), (rank() + 1) * len(problems))
        if world() > 1:  # a group's answers may lie in several processes
            problems, index, verdicts, answers, tokens = map(
                gather_object, (problems, index, verdicts, answers, tokens)
            )
        returns = discounted(self.record.rewards(verdicts, step), self.record.setup.config.rl.discount)
        found = advantages(returns, self.record.setup.config)
        if self.weigh:
            right = np.array([attempts[-1].outcome == "correct" for attempts in verdicts])
            found = self.weigh(found, right, np.array(tokens))
        self.record.add(step, problems, index, verdicts, answers, returns, found)
        self.weights = found[mine]
        return returns[mine].tolist()


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
