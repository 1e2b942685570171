"""No loss shows where the OOD peak is: all keep falling, or stay flat, after it"""

from collections.abc import Callable

import numpy as np

from oodlib.analysis.claims import FLAT, Finding, Rule, by_corner, decide, listed, percent
from oodlib.analysis.evidence import Evidence, Fall, Missing
from oodlib.analysis.stats import Scores

WINDOW = 0.05  # share of the steps, the last ones, over which the training loss is averaged


def paper(e: Evidence) -> Finding:
    """The paper speaks of the training loss and the ID test loss. Estimate: the relative change of the ID test loss
    from the OOD peak to the end. Supported: below +5 %, and so the training loss (mean of the steps within a third of
    the peak's, and of the last 5 %; no interval). Not supported: one above it.
    """
    rise, train = e.measure(_rise(e), e.splits.trained, column="loss"), _training_rise(e)
    verdict = decide(rise.high < FLAT and train < FLAT, rise.low > FLAT or train > FLAT)
    sentence = (
        f"From the OOD peak to the end the ID test loss changes by {percent(rise)} and the training loss by "
        f"{100 * train:+.0f} %."
    )
    return Finding(verdict, rise, None, "relative change of the ID test loss, peak to end", sentence)


def baselines(e: Evidence) -> Finding:
    """Does the loss of right OOD answers show the peak? Estimate: its relative change from the OOD peak to the end.
    Supported: below +5 %. Not supported: above it. The sentence gives each corner.
    """
    rises = by_corner(e, _rise(e), "loss")
    rise = rises[e.splits.headline.label]
    corners = listed(f"{label} {percent(x)}" for label, x in rises.items())
    sentence = f"From the OOD peak to the end the loss of right answers changes, by corner: {corners}."
    quantity = "relative change of the OOD test loss, peak to end"
    return Finding(decide(rise.high < FLAT, rise.low > FLAT), rise, None, quantity, sentence)


def _rise(e: Evidence) -> Callable[[Scores, Fall], float]:
    """A statistic: the relative change from the peak to the end."""
    return lambda s, fall: s[e.sft(e.end)] / s[e.sft(fall.peak)] - 1


def _training_rise(e: Evidence) -> float:
    """The relative change of the mean training loss from around the peak to the end, mean over seeds."""
    if e.training.empty:
        raise Missing("no training loss")
    width = max(1, round(WINDOW * e.end))
    changes = []
    for seed, peak in zip(e.seeds, e.peaks, strict=True):
        loss = e.training[e.training["seed"] == seed].set_index("step")["value"]
        around = loss[(loss.index >= peak * 2 / 3) & (loss.index <= peak * 4 / 3)]
        if around.empty:
            raise Missing(f"no training loss is logged around the OOD peak (step {peak})")
        changes.append(loss[loss.index > e.end - width].mean() / around.mean() - 1)
    return float(np.mean(changes))


CLAIM = Rule("C2", __doc__, "%", "arXiv:2509.12235v1", paper, baselines)
