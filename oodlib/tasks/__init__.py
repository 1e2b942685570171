"""Tasks: what the model learns, by name. See base.py for what a task must offer."""

from oodlib.tasks.base import OUTCOMES, SPLITS, STYLES, Outcome, Task, Verdict, check_choice, get_task, task_names

__all__ = ["OUTCOMES", "SPLITS", "STYLES", "Outcome", "Task", "Verdict", "check_choice", "get_task", "task_names"]
