"""SFT on the right answers that are nearest to the model: the oracle of "RL's Razor" (arXiv:2509.04259).

Of all distributions over right answers, the one with the smallest KL from the start is the start's own, restricted to
right answers and renormalised. The task lists every right answer to each of RL's problems, the start says how probable
it finds each, and as many demonstrations as RL plays are drawn by these shares. If RL forgets less because it stays
near to where it started, then this should forget even less, and it uses no RL.

The start is the SFT checkpoint from which all arms go on, for the base itself gives next to no answer in the format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oodlib.config import Config
from oodlib.training.baselines import ALGORITHM, Baseline

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from oodlib.training.setup import Setup


def check(config: Config) -> None:
    from oodlib.tasks import get_task

    if not hasattr(get_task(config.task.name, config.task.options), "answers"):
        raise ValueError(
            f"rl.baselines: sft_nearest needs a task that lists its right answers; {config.task.name} does not"
        )


def make_trainer(setup: Setup) -> Trainer:
    from oodlib.training.trainer import arm_trainer

    return arm_trainer(setup, nearest_answers(setup))


def nearest_answers(setup: Setup) -> Dataset:
    """RL's problems, each with `rl.samples` right answers, shuffled; columns prompt, completion."""
    from datasets import Dataset

    from oodlib.inference.episodes import as_text
    from oodlib.inference.evaluation import answer_loss

    style, tokenizer = setup.config.task.prompt_style, setup.tokenizer
    rng, problems = np.random.default_rng([setup.seed, 3]), setup.problems()
    right = [setup.task.answers(problem, style) for problem in problems]
    prompts = [as_text(setup.task.prompt(problem, style), tokenizer) for problem in problems]
    asked = [prompt for prompt, several in zip(prompts, right, strict=True) for _ in several]
    given = [as_text(answer, tokenizer, answer=True) for several in right for answer in several]
    tokens = [len(ids) + 1 for ids in tokenizer(given, add_special_tokens=False)["input_ids"]]  # and the end's
    chances = np.split(-answer_loss(setup.model, tokenizer, asked, given) * tokens, np.cumsum([*map(len, right)])[:-1])
    rows: dict[str, list] = {"prompt": [], "completion": []}
    for problem, several, log_p in zip(problems, right, chances, strict=True):
        shares = np.exp(log_p - log_p.max())
        for i in rng.choice(len(several), setup.config.rl.samples, p=shares / shares.sum()):
            rows["prompt"].append(setup.task.prompt(problem, style))
            rows["completion"].append(several[i])
    order = rng.permutation(len(rows["prompt"]))
    repeated = np.concatenate([order] * -(-setup.samples // len(order)))[: setup.samples]
    return Dataset.from_dict({name: [values[i] for i in repeated] for name, values in rows.items()})


BASELINE = Baseline(
    "SFT on the nearest right answers",
    "#2E8B57",
    "more",
    make_trainer=make_trainer,
    counts=False,
    ignores=(*ALGORITHM, "attempts", "temperature"),
    check=check,
)
