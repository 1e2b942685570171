"""What the notebooks show beside figures: small tables and sentences, each computed from a run's own tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
from IPython.display import Markdown
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.analysis.stats import rank_correlation
from oodlib.inference.episodes import as_text, generate
from oodlib.run import Run
from oodlib.tasks import SPLITS, get_task
from oodlib.tasks.general_points import RULES, Problem, compact_feedback, compact_prompt

PLAIN = "cards numbers formula"  # an answer format that the tiny base model keeps to
THIRD = {"J": 3, "Q": 7, "K": 9}  # a rule that is neither ID nor OOD
RIGHT_NUMBERS = ("correct", "wrong_value")  # outcomes
SEEN = "**What was seen.** "


def one_problem_of_each_split(run: Run) -> pd.DataFrame:
    """The size, the first prompt and a correct answer of each split of the run's task; a row a split."""
    task, style, rng, rows = run.task, run.config.task.prompt_style, np.random.default_rng(0), {}
    for split in SPLITS:
        problems = task.split(split)
        prompt, answer = task.prompt(problems[0], style), task.answer(problems[0], style, rng)
        prompt = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        rows[split.upper()] = (len(problems), prompt, as_text(answer, None, answer=True))
    return pd.DataFrame.from_dict(rows, orient="index", columns=["problems", "first prompt", "a correct answer"])


def base_model_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hands: int = 200) -> pd.DataFrame:
    """What the tiny base answers to random hands under three rules, asked for a plain format and for JSON.

    Columns: rule, format, right formula, right numbers, in JSON (shares of the hands), first answer.
    """
    task, rows = get_task("general_points"), []
    for name, rule in {"ID": RULES["id"], "OOD": RULES["ood"], "neither": THIRD}.items():
        dealt = [task.problem(p.cards, rule) for p in task.sample(np.random.default_rng(0), "ood", 4 * hands)]
        dealt = [p for p in dealt if task.solutions(p.numbers)][:hands]
        for fmt in (PLAIN, "json"):
            answers = generate(model, tokenizer, [compact_prompt(p, fmt) for p in dealt], 32)
            outcomes = [_outcome(p, a) for p, a in zip(dealt, answers, strict=True)]
            in_json = [task.verify(p, a).outcome != "malformed" for p, a in zip(dealt, answers, strict=True)]
            shares = (np.equal(outcomes, "correct"), np.isin(outcomes, RIGHT_NUMBERS), in_json)
            rows.append((name, fmt, *map(np.mean, shares), answers[0]))
    return pd.DataFrame(rows, columns=["rule", "format", "right formula", "right numbers", "in JSON", "first answer"])


def _outcome(problem: Problem, text: str) -> str:
    return get_task("general_points").verify_formula(problem, text.split(";")[-1]).outcome


def second_attempt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hands: int = 300) -> Markdown:
    """Dialogues with the ID rule in the prompt and a checker that applies the OOD rule: one, and what all show."""
    task, told, misread = get_task("general_points"), [], []
    dealt = task.sample(np.random.default_rng(1), "ood", hands)
    prompts = [compact_prompt(task.problem(p.cards, RULES["id"]), PLAIN) for p in dealt]
    for problem, prompt, answer in zip(dealt, prompts, generate(model, tokenizer, prompts, 32), strict=True):
        verdict = task.verify_formula(problem, answer.split(";")[-1])
        if verdict.outcome == "wrong_numbers":
            told.append(f"{prompt}{answer} <eos> {compact_feedback(problem, verdict, PLAIN)}")
            misread.append(problem)
    answers = generate(model, tokenizer, told, 32)
    outcomes = [_outcome(p, a) for p, a in zip(misread, answers, strict=True)]
    return Markdown(
        f"```\n{told[0]}{answers[0]}\n```\n{SEEN}{len(told)} of {hands} first answers use other numbers than the "
        f"checker's. After its message {np.isin(outcomes, RIGHT_NUMBERS).mean():.0%} of the second answers use the "
        f"right numbers, and {np.equal(outcomes, 'correct').mean():.0%} are correct."
    )


def wrong_answers(measurements: pd.DataFrame) -> str:
    """How OOD answers with wrong numbers, and those with a wrong value, change from the OOD peak to the end."""
    ood = measurements.query("stage == 'sft' and split == 'ood'")
    means = ood.pivot_table(index="step", columns="metric", values="value")
    peak = means["accuracy"].idxmax()
    numbers, value = means["wrong_numbers"], means["wrong_value"]
    return (
        f"From the peak (step {peak}) to the end, OOD answers with *wrong numbers* go from {numbers[peak]:.0%} to "
        f"{numbers.iloc[-1]:.0%}, those with a *wrong value* from {value[peak]:.0%} to {value.iloc[-1]:.0%}."
    )


def rotation_sentence(table: pd.DataFrame, stage: str) -> Markdown:
    """How accuracy goes along with rotation, from the table of `stats.rotation_and_accuracy` for that stage.

    SFT: from each seed's OOD peak on, beside the mere number of steps. RL: over all arms and starts, for both splits.
    """
    if table.empty:
        return Markdown("Rotation is not measured where each process holds a part of the weights (FSDP).")
    if stage == "rl":
        ood, id_ = (rank_correlation(table, "rotation", split) for split in ("ood", "id"))
        return Markdown(f"{SEEN}The rank correlation of rotation with the OOD gain is {ood}, with the ID gain {id_}.")
    peaks = table.loc[table.groupby("seed")["ood"].idxmax()].set_index("seed")["step"]
    after = table[table["step"] >= table["seed"].map(peaks)]
    angle, step = (rank_correlation(after, column, "ood") for column in ("rotation", "step"))
    return Markdown(
        f"{SEEN}From the peak on, OOD accuracy's rank correlation with rotation is {angle}, with steps {step}."
    )


def recovery_table(measurements: pd.DataFrame) -> pd.DataFrame:
    """Accuracy (percent, mean over seeds) of each start, and after RL and each baseline: columns (split, arm)."""
    accuracy = measurements[measurements["metric"] == "accuracy"]
    sft, rl = (accuracy[accuracy["stage"] == stage] for stage in ("sft", "rl"))
    starts = sft[sft["step"].isin(rl["from_step"])].assign(arm="start", from_step=sft["step"])
    table = pd.concat([starts, rl]).pivot_table(index="from_step", columns=["split", "arm"], values="value")
    return (100 * table).round(1)
