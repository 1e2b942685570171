"""The widget `rollouts`: RL's samples, with their rewards and advantages."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import pandas as pd

from oodlib.run import Run
from oodlib.widgets import parts


def rollouts(run: Run, seed: int | None = None) -> None:
    """Browse RL's samples: a hand's prompt, and its answers with their rewards and advantages."""
    seed = run.config.seed if seed is None else seed
    table = run.table("rollouts")
    table = table[table["seed"] == seed]
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
        samples = pd.DataFrame(
            {
                "reward": rows["reward"],
                "advantage": rows["advantage"],
                "verdict": rows["outcome"].astype(str).map(parts.as_outcome),
                "answer": rows["answer"].map(parts.as_code),
            }
        )
        samples = parts.as_table(samples, "answer").format("{:+g}", "reward").format("{:+.2f}", "advantage")
        samples.bar("advantage", align=0, vmin=-largest, vmax=largest, color=["#CCCCCC", "#CBBFE2"]).hide()
        asked = _asked(run.task, problem, run.config.task.prompt_style)
        result.value = parts.on_paper(f"{asked}{samples.to_html()}")

    start.observe(started, "value")
    update.observe(updated, "value")
    hand.observe(show, "value")
    started()
    parts.show_widget("rollouts", [start, update, hand], result, result.value)


def _asked(task: Any, label: str, style: str) -> str:
    """The prompt of a hand of the card game under the ID rule; of other tasks the label has to do."""
    if task.name != "general_points":
        return ""
    prompt = task.prompt(task.problem(label.split(), dict.fromkeys("JQK", 10)), style)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return f"<p>prompt: {parts.as_code(text)}</p>"
