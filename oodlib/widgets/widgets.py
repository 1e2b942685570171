"""Widgets of the notebooks, a line each: `play`, `timeline`, `surgery`, `rollouts`, over a run's folder.

Where nobody can operate a widget (papermill, GitHub, a printed page) its picture stands in its place. Play and surgery
need checkpoints, which no repository holds: a button trains those that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from oodlib.config import Config
from oodlib.inference.episodes import as_text, generate
from oodlib.inference.token_probabilities import Said, likeliest, parting, say
from oodlib.io import peak_step
from oodlib.models.loading import load_model
from oodlib.plots import widgets as figures
from oodlib.plots.style import sft_rows, wilson_band
from oodlib.run import Run
from oodlib.tasks import SPLITS, get_task
from oodlib.widgets.bench import Bench, Models
from oodlib.widgets.parts import (
    WIDE,
    as_code,
    as_outcome,
    as_picture,
    as_table,
    checkpoints_needed,
    on_paper,
    result_area,
    show_widget,
)

RULES = {"ID: J, Q, K count 10": (10, 10, 10), "OOD: J 11, Q 12, K 13": (11, 12, 13), "my own": None}
DEALT_FROM = 50  # hands, of which the first that the rule can solve is dealt
HANDS_SHOWN = 10  # of each split, in the picture of `play` before anything is trained


# ---- play ----------------------------------------------------------------------------------------------


def play(run: Run, seed: int | None = None) -> None:
    """Deal or type a hand, choose a rule, and see the base, peak, end and RL models answer it side by side.

    Behind each token of an answer, how sure the model was of it; where two answers part, what both might have said.
    """
    models, task = Models(run, seed), get_task(run.config.task.name, run.config.task.options)
    rng = np.random.default_rng(models.seed)
    load = cache(lambda name: load_model(models.folder(name)))
    hand = widgets.Text("5 5 Q A", description="hand", layout={"width": "190px"}, continuous_update=False)
    rule = widgets.Dropdown(options=list(RULES), value=list(RULES)[1], description="rule", layout={"width": "280px"})
    worth = [widgets.BoundedIntText(v, min=1, max=13, description=f) for f, v in zip("JQK", (11, 12, 13), strict=True)]
    for box in worth:
        box.layout.width, box.style.description_width = "90px", "20px"
    deal, ask = widgets.Button(description="deal"), widgets.Button(description="play", button_style="primary")
    pair = [widgets.Dropdown(description=text, layout={"width": "250px"}) for text in ("compare", "with")]
    result = result_area()

    def under_the_rule(cards: Iterable[str]) -> Any:
        return task.problem(cards, {f: b.value for f, b in zip("JQK", worth, strict=True)})

    def answer(_: Any = None) -> None:
        try:
            problem = under_the_rule(hand.value.split())
        except ValueError as error:
            result.value = on_paper(escape(str(error)))
            return
        prompt = as_text(task.prompt(problem, run.config.task.prompt_style), load("base")[1])
        said = {name: say(*load(name), prompt, run.config.task.max_new_tokens) for name in models.there()}
        rows = [_answer_row(name, task, problem, said[name]) for name in said]
        parts = _parting(*((p.value, said[p.value]) for p in pair), load("base")[1]) if len(said) > 1 else ""
        solutions = ", ".join(task.solutions(problem.numbers)[:8]) or "none"
        answers = as_table(["model", "verdict", "answer (the darker, the surer)"], rows)
        result.value = on_paper(f"{answers}{parts}<p>Solutions of {problem.numbers}: {escape(solutions)}</p>")

    def ruled(_: Any) -> None:
        for box, value in zip(worth, RULES[rule.value] or (), strict=bool(RULES[rule.value])):
            box.value = value
        answer()

    def dealt(_: Any) -> None:
        hands = [problem.cards for problem in task.sample(rng, "ood", DEALT_FROM)]  # each has a face card
        can = (cards for cards in hands if task.solutions(under_the_rule(cards).numbers))
        hand.value = " ".join(next(can, hands[0]))
        answer()

    rule.observe(ruled, "value")
    ask.on_click(answer)
    deal.on_click(dealt)

    settled = []  # holds something while a change of `pair` is the reader's

    def compared(_: Any) -> None:
        if settled:
            answer()

    def ready() -> None:
        settled.clear()
        for control, place in zip(pair, (1, 2), strict=True):
            control.options = there = models.there()
            control.value = there[min(place, len(there) - 1)]
            control.disabled = len(there) < 2
        settled.append(True)
        answer()

    for control in pair:
        control.observe(compared, "value")
    needs = checkpoints_needed(models, list(models.keys), ready)
    if needs.children:  # until they are trained, those that are there answer
        ready()
    if run.sources:
        picture = figures.played(run.table("hands"), models.seed, models.keys)
    else:
        picture = figures.answers(_answers(task, run.config, *load("base")), "base model")
    show_widget("play", [hand, rule, *worth, deal, ask, *pair], widgets.VBox([needs, result]), picture)


def _answers(task: Any, config: Config, model: Any, tokenizer: Any) -> dict[str, list[tuple[str, str]]]:
    """What a model answers to a few hands with a face card, by split, and what the formula in it is worth."""
    found = {}
    for split in SPLITS:
        faces = [p for p in task.split(split) if set(p.cards) & set("JQK")]
        problems = [faces[i] for i in np.linspace(0, len(faces) - 1, HANDS_SHOWN).round().astype(int)]
        prompts = [as_text(task.prompt(p, config.task.prompt_style), tokenizer) for p in problems]
        texts = generate(model, tokenizer, prompts, config.task.max_new_tokens)
        found[split] = [(text, _worth(task, p, text)[1]) for p, text in zip(problems, texts, strict=True)]
    return found


def _worth(task: Any, problem: Any, text: str) -> tuple[str, str]:
    """The outcome of an answer, and that of the formula in it, in whatever format it came."""
    outcome = task.verify(problem, text).outcome
    return outcome, task.verify_formula(problem, text.split(";")[-1]).outcome if outcome == "malformed" else outcome


def _answer_row(name: str, task: Any, problem: Any, said: Said) -> list[str]:
    outcome, inside = _worth(task, problem, said.text)
    more = ", but its formula is right" if (outcome, inside) == ("malformed", "correct") else ""
    marks = "".join(
        f'<span title="probability {p:.2f}" style="background: rgba(86, 180, 233, {0.75 * p:.2f})">{escape(t)} </span>'
        for t, p in zip(said.tokens, said.sure, strict=True)
    )
    return [escape(name), as_outcome(outcome, more), marks]


def _parting(one: tuple[str, Said], other: tuple[str, Said], tokenizer: Any) -> str:
    """A table of what two models might have said where their answers part."""
    place = parting(one[1], other[1])
    if place is None:
        return "<p>The two that are compared say the same.</p>"
    if place >= min(len(one[1].tokens), len(other[1].tokens)):
        return "<p>One of the two that are compared goes on where the other ends.</p>"
    common = escape(" ".join(one[1].tokens[:place])) or "the start"
    rows = [
        [escape(name), *(f"{as_code(w)} {p:.0%}" for w, p in likeliest(said, place, tokenizer).items())]
        for name, said in (one, other)
    ]
    heads = ["compared", "likeliest next", "second", "third", "fourth"]
    return f"<p>They part after <code>{common}</code>. What each might have said there:</p>{as_table(heads, rows)}"


# ---- timeline ------------------------------------------------------------------------------------------


def timeline(run: Run) -> None:
    """One slider over the SFT checkpoints moves accuracy, answers, losses and the rotation map together."""
    measurements, rotation = run.table("measurements"), run.table("rotation")
    steps = sorted(sft_rows(measurements, "accuracy")["step"].unique().tolist())

    @cache
    def drawn(step: int) -> str:
        alt = f"accuracy, answers, losses and rotation of the checkpoint after {step} steps of SFT"
        return as_picture(figures.timeline(measurements, rotation, step), alt)

    peak = peak_step(measurements, int(measurements["seed"].min()))
    slider = widgets.SelectionSlider(
        options=steps, value=peak, description="SFT step", continuous_update=False, layout={"width": "480px"}
    )
    result = result_area()

    def moved(_: Any = None) -> None:
        result.value = drawn(slider.value)

    slider.observe(moved, "value")
    moved()
    show_widget("timeline", [slider], result, figures.timeline(measurements, rotation, steps[-1]))


# ---- surgery -------------------------------------------------------------------------------------------


def surgery(run: Run, seed: int | None = None) -> None:
    """Put singular values or vectors of the OOD peak back into the last SFT checkpoint, and see how it then plays.

    At once on `bench.SAMPLE` hands of each split, with the interval that so few allow; at a button's press on all.
    """
    models = Models(run, seed)
    _, donor, recipient, *_ = models.keys
    accuracy = sft_rows(run.table("measurements"), "accuracy").query("seed == @models.seed")
    known = {
        name: accuracy[accuracy["step"] == step].set_index("split")["value"].to_dict()
        for name, step in (("end", models.end), ("peak", models.peak))
    }
    bench = cache(lambda: Bench(models.folder(recipient), models.folder(donor), run.config, embeddings=True))
    part = widgets.Dropdown(options=["vectors", "values"], description="restore", layout={"width": "190px"})
    top = widgets.IntSlider(100, 0, 100, 5, description="leading %", continuous_update=False)
    tail = widgets.IntSlider(0, 0, 100, 5, description="trailing %", continuous_update=False)
    layers = widgets.SelectMultiple(description="layers", rows=4, layout={"width": "170px"})
    outer = widgets.Checkbox(True, description="embeddings too", indent=False, layout={"width": "150px"})
    every = widgets.Button(description="measure on all hands", layout={"width": "auto"})
    result = result_area()

    controls = [part, top, tail, layers, outer, every]

    def edit(_: Any = None, all_hands: bool = False) -> None:
        if top.value + tail.value > 100:
            result.value = on_paper("Leading and trailing directions overlap: together they may be at most 100 %.")
            return
        seconds = time.perf_counter()
        chosen = (*layers.value, *([None] if outer.value else []))
        found, hands = bench().measure(part.value, top.value / 100, tail.value / 100, chosen, all_hands)
        seconds = time.perf_counter() - seconds
        title = f"{part.value}: leading {top.value} %, trailing {tail.value} %, layers {_several(chosen)}"
        said = ", ".join(f"{s.upper()} {v:.1%} [{a:.1%}, {b:.1%}]" for s, (v, a, b) in found.items())
        text = f"{title}. Accuracy of the edited model on {hands}: {said} ({seconds:.1f} s)."
        result.value = on_paper(f"{as_picture(figures.edited(found, known, title), text)}<p>{escape(text)}</p>")

    def ready() -> None:
        layers.options = bench().layers
        layers.value = bench().layers
        for control in controls:
            control.disabled = False
            if control is not every:
                control.observe(edit, "value")
        edit()

    for control in controls:
        control.disabled = True
    every.on_click(lambda _: edit(all_hands=True))
    needs = checkpoints_needed(models, [recipient, donor], ready)
    picture = _measured_edit(run.table("measurements"), models.seed, known)
    show_widget("surgery", controls, widgets.VBox([needs, result]), picture)


def _measured_edit(measurements: pd.DataFrame, seed: int, known: dict[str, dict[str, float]]) -> Figure:
    """The edit with which the table opens, all vectors, as the run measured it on all hands."""
    mine = measurements.query("stage == 'surgery' and metric == 'accuracy' and seed == @seed")
    arm = next((a for a in ("vectors every matrix", "vectors top 1") if a in set(mine["arm"])), None)
    if arm is None:
        return figures.edited({split: (v, v, v) for split, v in known["end"].items()}, known, "nothing is edited yet")
    found = {}
    for row in mine[mine["arm"] == arm].itertuples():
        low, high = wilson_band(np.array([row.value]), row.n)
        found[row.split] = (row.value, float(low[0]), float(high[0]))
    where = "embeddings too" if arm.endswith("matrix") else "without embeddings"
    return figures.edited(found, known, f"vectors: leading 100 %, trailing 0 %, all layers, {where}; on all hands")


def _several(layers: tuple[int | None, ...]) -> str:
    return ", ".join("embeddings" if layer is None else str(layer) for layer in layers) or "none"


# ---- rollouts ------------------------------------------------------------------------------------------


def rollouts(run: Run, seed: int | None = None) -> None:
    """Browse RL's samples: a hand's prompt, answers, rewards and advantages; its greedy answer before and after."""
    seed = run.config.seed if seed is None else seed
    table = run.table("rollouts")
    table = table[table["seed"] == seed]
    hands, task = run.table("hands"), get_task(run.config.task.name, run.config.task.options)
    hands = hands[(hands["seed"] == seed) & (hands["split"] == "id")]
    judged = hands.set_index(hands["problem"].astype(str).map(_sorted))
    start = widgets.Dropdown(
        options=sorted(table["from_step"].unique().tolist()), description="RL from step", style=WIDE
    )
    update = widgets.SelectionSlider(options=[0], description="update", continuous_update=False)
    hand = widgets.SelectionSlider(options=[0], description="hand", continuous_update=False)
    result = result_area()

    def mine() -> pd.DataFrame:
        return table[(table["from_step"] == start.value) & (table["update"] == update.value)]

    def started(_: Any = None) -> None:
        update.options = sorted(table.loc[table["from_step"] == start.value, "update"].unique().tolist())
        updated()

    def updated(_: Any = None) -> None:
        groups = mine().drop_duplicates("group")
        hand.options = [(f"{p} ({g})", g) for g, p in zip(groups["group"], groups["problem"], strict=True)]
        show()

    def show(_: Any = None) -> None:
        rows = mine()[mine()["group"] == hand.value]
        if rows.empty:
            return
        problem = str(rows["problem"].iloc[0])
        greedy = _greedy(judged, _sorted(problem), start.value)
        largest = max(float(table["advantage"].abs().max()), 1e-6)
        samples = [
            [f"{r.reward:+g}", _advantage(r.advantage, largest), as_outcome(str(r.outcome)), as_code(r.answer)]
            for r in rows.sort_values("reward", ascending=False).itertuples()
        ]
        asked = _asked(task, problem, run.config.task.prompt_style)
        shown = as_table(["reward", "advantage", "verdict", "answer"], samples)
        result.value = on_paper(f"{asked}{shown}<p>{escape(greedy)}</p>")

    start.observe(started, "value")
    update.observe(updated, "value")
    hand.observe(show, "value")
    started()
    first = mine()[mine()["group"] == mine()["group"].iloc[0]]
    dealt = str(first["problem"].iloc[0])
    title = f"Update {update.value} of RL from step {start.value}: the hand {dealt}\n"
    title += _greedy(judged, _sorted(dealt), start.value)
    show_widget("rollouts", [start, update, hand], result, figures.group(first, title))


def _advantage(value: float, largest: float) -> str:
    """A number with a bar from the middle, to the right where it is positive."""
    width, colour = 40 * abs(value) / largest, "#54278F" if value > 0 else "#8C8C8C"
    left, right = (40, 40 - width) if value > 0 else (40 - width, 40)
    bar = f"display: inline-block; height: 9px; width: {width:.0f}px; margin: 0 {right:.0f}px 0 {left:.0f}px"
    return f'<span aria-hidden="true" style="{bar}; background: {colour}"></span> {value:+.2f}'


def _sorted(label: str) -> str:
    return " ".join(sorted(str(label).split()))


def _asked(task: Any, label: str, style: str) -> str:
    """The prompt of a hand of the card game under the ID rule; of other tasks the label has to do."""
    if task.name != "general_points":
        return ""
    prompt = task.prompt(task.problem(label.split(), dict.fromkeys("JQK", 10)), style)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return f"<p>prompt: {as_code(text)}</p>"


def _greedy(judged: pd.DataFrame, label: str, start: int) -> str:
    """How the hand is played greedily before RL and after it (whatever the order of its cards)."""
    if label not in judged.index:
        return "This hand was not evaluated."
    mine = judged.loc[[label]]
    before = mine[(mine["stage"] == "sft") & (mine["step"] == start)]["outcome"]
    after = mine[(mine["stage"] == "rl") & (mine["arm"] == "rl") & (mine["from_step"] == start)]["outcome"]
    said = [str(found.iloc[0]).replace("_", " ") if len(found) else "not measured" for found in (before, after)]
    return f"Played greedily, this hand's answer is {said[0]} before RL and {said[1]} after it."
