"""oodlib: what the notebooks stand on. Read config.py, run.py and stages.py first."""

from oodlib.run import STAGES, Run
from oodlib.stages import ensure

__all__ = ["STAGES", "Run", "ensure"]
