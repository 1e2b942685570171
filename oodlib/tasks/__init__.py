"""Tasks: what the model learns, by name. See base.py for what a task must offer."""

from oodlib.tasks.base import (
    OUTCOMES,
    STYLES,
    Cloze,
    Outcome,
    Split,
    Splits,
    Task,
    Verdict,
    check_choice,
    get_task,
    task_names,
)

__all__ = [
    "OUTCOMES", "STYLES", "Cloze", "Outcome", "Split", "Splits", "Task", "Verdict", "check_choice", "get_task",
    "task_names",
]  # fmt: skip
