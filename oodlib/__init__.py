"""oodlib: what the notebooks call. One file a concept; read `runs.py` and `stages.py` first."""

from oodlib.runs import Run
from oodlib.stages import STAGES, ensure

__all__ = ["STAGES", "Run", "ensure"]
