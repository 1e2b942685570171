"""The figures. Each is drawn from tables alone, so that it can be drawn again without training.

`plots.accuracy_curve(measurements, run.splits)` and the others named here are a run's; those of the sweeps are in
`plots.sweep` and `plots.mitigations`, those of `oodlib compare` in `plots.comparison`, the pictures inside the widgets
in `plots.widgets`.
"""

from oodlib.plots import comparison, mitigations, sweep
from oodlib.plots.rl import advantages, recovery, rewards, rotation_and_recovery
from oodlib.plots.scorecard import scorecard
from oodlib.plots.sft import accuracy_curve, beliefs, corners, face_values, losses, outcomes, rotation_and_accuracy
from oodlib.plots.spectral import rotation_map, surgery, turning, value_change
from oodlib.plots.style import colour, label, neat, style

__all__ = [
    "accuracy_curve", "advantages", "beliefs", "colour", "comparison", "corners", "face_values", "label", "losses",
    "mitigations", "neat", "outcomes", "recovery", "rewards", "rotation_and_accuracy", "rotation_and_recovery",
    "rotation_map", "scorecard", "style", "surgery", "sweep", "turning", "value_change",
]  # fmt: skip
