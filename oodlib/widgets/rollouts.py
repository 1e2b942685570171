"""The widget `rollouts`: RL's samples, with their rewards and advantages."""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd

from oodlib.run import Run
from oodlib.widgets import parts


def rollouts(run: Run, seed: int | None = None) -> None:
    """Browse RL's samples: a hand's prompt, answers, rewards and advantages; its greedy answer before and after."""
    seed = run.config.seed if seed is None else seed
    table = run.table("rollouts")
    table = table[table["seed"] == seed]
    hands = run.table("hands").query("seed == @seed and split == 'id'")
    judged = hands.set_index(hands["problem"].astype(str).map(_sorted))
    largest = max(float(table["advantage"].abs().max()), 1e-6)
    starts = sorted(table["from_step"].unique().tolist())
    start = widgets.Dropdown(options=starts, description="RL from step", style=parts.WIDE)
    update = widgets.SelectionSlider(options=[0], description="update", continuous_update=False)
    hand = widgets.SelectionSlider(options=[0], description="hand", continuous_update=False)
    result = parts.result_area()

    def batch() -> pd.DataFrame:
        return table[(table["from_step"] == start.value) & (table["update"] == update.value)]

    def started(_: Any = None) -> None:
        update.options = sorted(table.loc[table["from_step"] == start.value, "update"].unique().tolist())
        updated()

    def updated(_: Any = None) -> None:
        groups = batch().drop_duplicates("group")
        hand.options = [(f"{p} ({g})", g) for g, p in zip(groups["group"], groups["problem"], strict=True)]
        show()

    def show(_: Any = None) -> None:
        rows = batch().sort_values("reward", ascending=False)
        rows = rows[rows["group"] == hand.value]
        if rows.empty:
            return
        problem = str(rows["problem"].iloc[0])
        cells = [rows["reward"].map("{:+g}".format), [_advantage(a, largest) for a in rows["advantage"]]]
        cells += [rows["outcome"].astype(str).map(parts.as_outcome), rows["answer"].map(parts.as_code)]
        samples = parts.as_table(["reward", "advantage", "verdict", "answer"], list(zip(*cells, strict=True)))
        asked = _asked(run.task, problem, run.config.task.prompt_style)
        greedy = _greedy(judged, _sorted(problem), start.value)
        result.value = parts.on_paper(f"{asked}{samples}<p>{escape(greedy)}</p>")

    start.observe(started, "value")
    update.observe(updated, "value")
    hand.observe(show, "value")
    started()
    parts.show_widget("rollouts", [start, update, hand], result, result.value)


def _advantage(value: float, largest: float) -> str:
    """A number with a bar from the middle, to the right where it is positive."""
    width, hue = 40 * abs(value) / largest, "#54278F" if value > 0 else "#8C8C8C"
    left, right = (40, 40 - width) if value > 0 else (40 - width, 40)
    bar = f"display: inline-block; height: 9px; width: {width:.0f}px; margin: 0 {right:.0f}px 0 {left:.0f}px"
    return f'<span aria-hidden="true" style="{bar}; background: {hue}"></span> {value:+.2f}'


def _sorted(label: str) -> str:
    return " ".join(sorted(str(label).split()))


def _asked(task: Any, label: str, style: str) -> str:
    """The prompt of a hand of the card game under the ID rule; of other tasks the label has to do."""
    if task.name != "general_points":
        return ""
    prompt = task.prompt(task.problem(label.split(), dict.fromkeys("JQK", 10)), style)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return f"<p>prompt: {parts.as_code(text)}</p>"


def _greedy(judged: pd.DataFrame, label: str, start: int) -> str:
    """How the hand is played greedily before RL and after it (whatever the order of its cards)."""
    if label not in judged.index:
        return "This hand was not evaluated."
    answers = judged.loc[[label]]
    before = answers.query("stage == 'sft' and step == @start")["outcome"]
    after = answers.query("stage == 'rl' and arm == 'rl' and from_step == @start")["outcome"]
    said = [str(outcome.iloc[0]).replace("_", " ") if len(outcome) else "not measured" for outcome in (before, after)]
    return f"Played greedily, this hand's answer is {said[0]} before RL and {said[1]} after it."
