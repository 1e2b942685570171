"""Widgets of the notebooks, a line each: `play`, `timeline`, `surgery`, `rollouts`, over a run's folder; and `Guess`.

Where nobody can operate a widget (papermill, GitHub, a printed page) a picture or a table stands in its place. Play and
surgery need checkpoints, which no repository holds: a button trains those that are missing.
"""

from oodlib.widgets.lecture import Guess, beside_the_paper
from oodlib.widgets.play import play
from oodlib.widgets.rollouts import rollouts
from oodlib.widgets.surgery import surgery
from oodlib.widgets.timeline import timeline

__all__ = ["Guess", "beside_the_paper", "play", "rollouts", "surgery", "timeline"]
