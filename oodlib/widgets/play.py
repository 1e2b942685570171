"""The widget `play`: a hand, a rule, and the models' answers side by side."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd

from oodlib.inference.episodes import as_text
from oodlib.inference.token_probabilities import Said, likeliest, parting, say
from oodlib.models.loading import load_model
from oodlib.run import Run
from oodlib.widgets import parts
from oodlib.widgets.models import Models

OWN = "my own"  # rule
DEALT_FROM = 50  # hands, of which the first that the rule can solve is dealt


def play(run: Run, seed: int | None = None) -> None:
    """Deal or type a hand, choose a rule, and see the base, peak, end and RL models answer it side by side.

    Hands are dealt from the split whose rule is chosen; the hand on the table stays if it is one of that split.
    Behind each token of an answer, how sure the model was of it; where the answers of the peak and of the end part,
    what both might have said.
    """
    models, task, splits = Models(run, seed), run.task, run.splits
    rules = {split.name: task.split(split.name)[0].rule for split in splits}
    choices = [(f"{s.label}: J {j}, Q {q}, K {k}", s.name) for s in splits for j, q, k in [rules[s.name]]]
    rng = np.random.default_rng(models.seed)
    load = cache(lambda name: load_model(models.folder(name)))
    hand = widgets.Text("5 5 Q A", description="hand", layout={"width": "190px"}, continuous_update=False)
    rule = widgets.Dropdown(options=[*choices, (OWN, OWN)], description="rule", layout={"width": "280px"})
    rule.value = splits.headline.name
    worth = [widgets.BoundedIntText(min=1, max=13, description=face) for face in "JQK"]
    for box, value in zip(worth, rules[rule.value], strict=True):
        box.value, box.layout.width, box.style.description_width = value, "90px", "20px"
    deal, ask = widgets.Button(description="deal"), widgets.Button(description="play", button_style="primary")
    result = parts.result_area()

    def under_the_rule(cards: Iterable[str]) -> Any:
        return task.problem(cards, {f: b.value for f, b in zip("JQK", worth, strict=True)})

    def answer(_: Any = None) -> None:
        try:
            problem = under_the_rule(hand.value.split())
        except ValueError as error:
            result.value = parts.on_paper(escape(str(error)))
            return
        prompt = as_text(task.prompt(problem, run.config.task.prompt_style), load("base")[1])
        said = {name: say(*load(name), prompt, run.config.task.max_new_tokens) for name in models.there()}
        rows = [_answer_row(task, problem, answer) for answer in said.values()]
        apart = _parting(*list(said.items())[1:3], load("base")[1]) if len(said) > 2 else ""
        solutions = ", ".join(task.solutions(problem.numbers)[:8]) or "none"
        words = "answer (the darker, the surer)"
        answers = parts.as_table(pd.DataFrame(rows, [*said], ["verdict", words]), words)
        result.value = parts.on_paper(
            f"{answers.to_html()}{apart}<p>Solutions of {problem.numbers}: {escape(solutions)}</p>"
        )

    def ruled(_: Any) -> None:
        if rule.value == OWN:
            answer()
            return
        for box, value in zip(worth, rules[rule.value], strict=True):
            box.value = value
        hands = (sorted(problem.cards) for problem in task.split(rule.value))
        (answer if sorted(hand.value.upper().split()) in hands else dealt)()

    def dealt(_: Any = None) -> None:
        split = splits.headline.name if rule.value == OWN else rule.value
        hands = [problem.cards for problem in task.sample(rng, split, DEALT_FROM)]
        can = (cards for cards in hands if task.solutions(under_the_rule(cards).numbers))
        hand.value = " ".join(next(can, hands[0]))
        answer()

    rule.observe(ruled, "value")
    ask.on_click(answer)
    deal.on_click(dealt)

    needs = parts.checkpoints_needed(models, list(models.keys), answer)
    if needs.children:  # until they are trained, those that are there answer
        answer()
    controls = [hand, rule, *worth, deal, ask]
    parts.show_widget("play", controls, widgets.VBox([needs, result]), result.value)


def _answer_row(task: Any, problem: Any, said: Said) -> list[str]:
    verdict, more = task.verify(problem, said.text), ""
    if verdict.outcome == "malformed" and task.verify_formula(problem, said.text.split(";")[-1]).outcome == "correct":
        more = ", but its formula is right"
    elif verdict.outcome != "correct" and verdict.measures["old_rule"]:
        more = ", but right by the rule of SFT"
    marks = "".join(
        f'<span title="probability {p:.2f}" style="background: rgba(86, 180, 233, {0.75 * p:.2f})">{escape(t)} </span>'
        for t, p in zip(said.tokens, said.sure, strict=True)
    )
    return [parts.as_outcome(verdict.outcome, more), marks]


def _parting(one: tuple[str, Said], other: tuple[str, Said], tokenizer: Any) -> str:
    """A table of what two models might have said where their answers part."""
    place = parting(one[1], other[1])
    if place is None:
        return f"<p>{escape(one[0])} and {escape(other[0])} say the same.</p>"
    if place >= min(len(one[1].tokens), len(other[1].tokens)):
        return f"<p>One of {escape(one[0])} and {escape(other[0])} goes on where the other ends.</p>"
    common = escape(" ".join(one[1].tokens[:place])) or "the start"
    places = ["likeliest next", "second", "third", "fourth"]
    rows = {
        name: [f"{parts.as_code(word)} {p:.0%}" for word, p in likeliest(said, place, tokenizer).items()]
        for name, said in (one, other)
    }
    table = parts.as_table(pd.DataFrame.from_dict(rows, orient="index", columns=places), places[-1])
    return f"<p>They part after <code>{common}</code>. What each might have said there:</p>{table.to_html()}"
