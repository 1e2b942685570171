"""What the notebooks show beside figures: small tables and sentences, each computed from a run's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from oodlib.analysis.claims import listed
from oodlib.analysis.stats import BY_OLD_RULE, beliefs, rank_correlation
from oodlib.inference.episodes import as_text, generate
from oodlib.io import digest
from oodlib.plots.style import in_order
from oodlib.results import Results, judged_by
from oodlib.run import Run
from oodlib.tasks import Cloze, Splits, get_task
from oodlib.tasks.general_points import Problem, compact_feedback, compact_prompt

PLAIN = "cards numbers formula"  # an answer format that the tiny base model keeps to
RIGHT_NUMBERS = ("correct", "wrong_value")  # outcomes
SEEN = "**What was seen.** "
MEASURES = {  # what may be forgotten: which change is for the worse, and how it is told
    "numbers_read": (-1, "fewer name the hand's numbers (reading)"),
    "old_numbers": (1, "more name the numbers of SFT's rule (clinging)"),
    "old_rule": (1, "more are right by the rule of SFT (clinging)"),
    "wrong_numbers": (1, "more use other numbers in the formula (writing)"),
    "wrong_value": (1, "more have a wrong value (arithmetic)"),
}


def one_problem_of_each_split(run: Run) -> pd.DataFrame:
    """The size, the first prompt and a correct answer of each split of the run's task; a row a split."""
    task, style, rng, rows = run.task, run.config.task.prompt_style, np.random.default_rng(0), {}
    for split in task.splits:
        problems = task.split(split.name)
        prompt, answer = task.prompt(problems[0], style), task.answer(problems[0], style, rng)
        prompt = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        rows[split.label] = (split.about, len(problems), prompt, as_text(answer, None, answer=True))
    columns = ["what it is", "problems", "first prompt", "a correct answer"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def other_task(run: Run) -> Markdown | None:
    """What the corners of a run's task are, where it is not the cards of which the notebooks' texts speak."""
    if run.config.task.name == "general_points":
        return None
    corners = [
        f"- **{split.label}** changes {listed([f'the {c}' for c in split.changes]) if split.changes else 'nothing'}"
        + (f" ({split.about})" if split.about else "")
        for split in run.splits
    ]
    return Markdown(
        f"**This run's task is {run.config.task.name}.** Figures, tables and sentences that are computed are of it. "
        "The texts between them speak of the default task, hands of cards: read *hand* as *problem*, and for *new "
        "rule* and *new numbers* the corners of this task.\n\n" + "\n".join(corners)
    )


def base_model_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hands: int = 200) -> pd.DataFrame:
    """What the tiny base answers to random hands of each corner, asked for a plain format and for JSON.

    Columns: corner, J, Q, K, format, right formula, right numbers, in JSON (shares of the hands), first answer.
    """
    task, rows = get_task("general_points"), []
    for split in task.splits:
        dealt = task.sample(np.random.default_rng(0), split.name, hands)
        for fmt in (PLAIN, "json"):
            answers = generate(model, tokenizer, [compact_prompt(p, fmt) for p in dealt], 32)
            outcomes = [_outcome(p, a) for p, a in zip(dealt, answers, strict=True)]
            in_json = [task.verify(p, a).outcome != "malformed" for p, a in zip(dealt, answers, strict=True)]
            shares = (np.equal(outcomes, "correct"), np.isin(outcomes, RIGHT_NUMBERS), in_json)
            rule = ", ".join(map(str, dealt[0].rule))
            rows.append((split.label, rule, fmt, *map(np.mean, shares), answers[0]))
    shares = ["right formula", "right numbers", "in JSON"]
    return pd.DataFrame(rows, columns=["corner", "J, Q, K", "format", *shares, "first answer"])


def _outcome(problem: Problem, text: str) -> str:
    return get_task("general_points").verify_formula(problem, text.split(";")[-1]).outcome


def second_attempt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, hands: int = 300) -> Markdown:
    """Dialogues with the rule of SFT in the prompt and a checker that applies the OOD rule: one, and what all show."""
    task, told, misread = get_task("general_points"), [], []
    dealt = task.sample(np.random.default_rng(1), task.splits.headline.name, hands)
    trained = task.split(task.splits.trained.name)[0].rule
    prompts = [compact_prompt(replace(p, rule=trained), PLAIN) for p in dealt]
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


def forgotten(measurements: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """Each split's measures at the headline's peak and at the end of SFT, in percent, means over seeds.

    The peak is that of accuracy, or of reading (see `results.judged_by`). Rows: splits by label. Columns: (measure,
    step), for accuracy and those of `MEASURES` that the task has. NaN for old_numbers and old_rule where they are
    numbers_read and the accuracy, for the rule is that of SFT.
    """
    rows = measurements[(measurements["stage"] == "sft") & measurements["split"].isin(splits.names)]
    means = rows.pivot_table(index="step", columns=["metric", "split"], values="value")
    peak = means[judged_by(measurements, splits), splits.headline.name].idxmax()
    end = means["accuracy"].dropna().index[-1]
    known = [measure for measure in ("accuracy", *MEASURES) if measure in means]
    table = 100 * means.loc[[*dict.fromkeys((peak, end))], known].T.unstack("metric").swaplevel(axis=1)
    table = table.reindex(index=splits.names, columns=pd.MultiIndex.from_product([known, table.columns.levels[1]]))
    for old, new in BY_OLD_RULE.items():
        if old in known:
            table.loc[(table[old] == table[new]).all(axis=1), old] = np.nan
    return table.rename(index={split.name: split.label for split in splits})


def one_run_each(folders: Iterable[Path]) -> dict[str, Results]:
    """Of the runs in these folders that differ in their seeds alone the one with most; by what tables call it."""
    found: dict[str, tuple[int, Results]] = {}
    for run in map(Results, folders):
        settings, seeds = run.manifest["settings"], len(run.manifest["seeds"])
        key = digest([settings[part] for part in ("task", "model", "sft", "rl")])
        if seeds > found.get(key, (0, None))[0]:
            found[key] = seeds, run
    about = {run: run.manifest["settings"] for _, run in found.values()}
    return {
        f"{run.folder.name}: {about[run]['task']['name']}, {about[run]['model']['source']} ({n} seeds)": run
        for n, run in found.values()
    }


def corners_beside(runs: Mapping[str, Results]) -> pd.DataFrame:
    """What `forgotten` says of several runs: rows (run, split), a column a measure, "from → to" in percent."""
    tables = {}
    for name, run in runs.items():
        table = forgotten(run.table("measurements", "sft"), run.splits)
        told = table.T.groupby(level=0, sort=False).agg(lambda ends: f"{ends.iloc[0]:.0f} → {ends.iloc[-1]:.0f}").T
        tables[name] = told.where(told != "nan → nan", "")
    return pd.concat(tables, names=["run", "corner"]).fillna("")


def wrong_answers(measurements: pd.DataFrame, splits: Splits, faults: Mapping[str, str] | None = None) -> str:
    """What is forgotten from the headline's peak to the end of SFT, by split: is it reading, clinging, arithmetic?

    Where accuracy falls, those of `MEASURES` are named that get worse, each by half an answer of 100 or more. faults: a
    task's own words for them.
    """
    words_of = {measure: (faults or {}).get(measure, words) for measure, (_, words) in MEASURES.items()}
    table = forgotten(measurements, splits)
    if len(table["accuracy"].columns) == 1:
        return f"{splits.headline.label} is at its highest at the end: nothing is forgotten there."
    peak, end = table["accuracy"].columns
    sentences = [f"From the {splits.headline.label} peak (step {peak}) to the end (step {end}), of 100 answers:"]
    for split, row in table.iterrows():
        change = row.xs(end, level=1) - row.xs(peak, level=1)
        right = f"{abs(change['accuracy']):.0f} {'more' if change['accuracy'] > 0 else 'fewer'} are right"
        worse = [
            f"{abs(change[measure]):.0f} {words_of[measure]}"
            for measure, (sign, _) in MEASURES.items()
            if sign * change.get(measure, 0) >= 0.5 and change["accuracy"] <= -0.5
        ]
        sentences.append(f"in **{split}** {right}" + (f": {listed(worse)}" if worse else ""))
    return sentences[0] + " " + "; ".join(sentences[1:]) + "."


def belief_sentence(measurements: pd.DataFrame, clozes: Sequence[Cloze], splits: Splits) -> Markdown:
    """How probable each new rule's values are where the prompt states that rule, and where it states none: at the
    headline's peak and at the end of SFT."""
    table = beliefs(measurements, clozes).groupby(["rule", "under", "step"])["value"].mean()
    sft = measurements[(measurements["stage"] == "sft") & (measurements["split"] == splits.headline.name)]
    curve = sft[sft["metric"] == judged_by(measurements, splits)]
    peak, end = curve.groupby("step")["value"].mean().idxmax(), curve["step"].max()
    told = []
    for split in (split for split in splits if split.name in clozes[0].under and "rule" in split.changes):
        read, believed = ([table[rule, split.name, step] for step in (peak, end)] for rule in (split.name, "none"))
        text = "{:.2f} at the peak and {:.2f} at the end".format
        told.append(f"**{split.label}**: {text(*read)} if it is stated, {text(*believed)} if no rule is")
    symbols = listed(dict.fromkeys(cloze.symbol for cloze in clozes))
    return Markdown(f"{SEEN}The probability of a new rule's values for {symbols}. {'; '.join(told)}.")


def rotation_sentence(table: pd.DataFrame, stage: str, splits: Splits) -> Markdown:
    """How accuracy goes along with rotation, from the table of `stats.rotation_and_accuracy` for that stage.

    SFT: from each seed's headline peak on, beside the mere number of steps. RL: over all arms and starts, for the
    headline and the split that is trained on.
    """
    if table.empty:
        return Markdown("Rotation is not measured where each process holds a part of the weights (FSDP).")
    headline, trained = splits.headline.label, splits.trained.label
    if stage == "rl":
        of_headline, of_trained = (rank_correlation(table, "rotation", role) for role in ("headline", "trained"))
        return Markdown(
            f"{SEEN}The rank correlation of rotation with the {headline} gain is {of_headline}, with the {trained} "
            f"gain {of_trained}."
        )
    peaks = table.loc[table.groupby("seed")["headline"].idxmax()].set_index("seed")["step"]
    after = table[table["step"] >= table["seed"].map(peaks)]
    angle, step = (rank_correlation(after, column, "headline") for column in ("rotation", "step"))
    return Markdown(
        f"{SEEN}From the peak on, {headline} accuracy's rank correlation with rotation is {angle}, with steps {step}."
    )


def recovery_table(measurements: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """Accuracy (percent, mean over seeds) of each start, and after RL and each baseline; or reading, where the run is
    judged by that (see `results.judged_by`).

    Rows: (split's label, start), the headline first. Columns: arms, "start" and "rl" first.
    """
    accuracy = measurements[measurements["metric"] == judged_by(measurements, splits)]
    sft, rl = (accuracy[accuracy["stage"] == stage] for stage in ("sft", "rl"))
    starts = sft[sft["step"].isin(rl["from_step"])].assign(arm="start", from_step=sft["step"])
    table = pd.concat([starts, rl]).pivot_table(index=["split", "from_step"], columns="arm", values="value")
    order = {split.name: split.label for split in (splits.headline, *splits)}  # each once, in this order
    table = table.reindex([name for name in order if name in table.index], level="split")[in_order(table.columns)]
    return (100 * table).round(1).rename(index=order, level="split")
