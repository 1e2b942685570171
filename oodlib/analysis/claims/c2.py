"""No loss shows where the OOD peak is: all keep falling, or stay flat, after it"""

import numpy as np

from oodlib.analysis.claims import FLAT, Finding, Rule, decide, percent
from oodlib.analysis.evidence import Evidence, Missing

WINDOW = 0.05  # share of the steps, the last ones, over which the training loss is averaged


def rule(e: Evidence) -> Finding:
    """Estimate: the larger of the relative changes of the ID and the OOD test loss from the peak to the end.
    Supported: both below +5 %, and so the training loss (mean of the steps within a third of the
    peak's, and of the last 5 %; no interval). Not supported: one above it.
    """
    rises = {
        split: e.measure(lambda s, fall: s[e.sft(e.end)] / s[e.sft(fall.peak)] - 1, split, "loss")
        for split in ("id", "ood")
    }
    split = max(rises, key=lambda s: rises[s].value)
    train = _training_rise(e)
    verdict = decide(
        all(r.high < FLAT for r in rises.values()) and train < FLAT,
        any(r.low > FLAT for r in rises.values()) or train > FLAT,
    )
    ends = {"supported": "none of them shows the peak", "not supported": f"the {split.upper()} loss shows it"}
    sentence = (
        f"From the OOD peak to the end the ID test loss changes by {percent(rises['id'])}, the OOD test loss by "
        f"{percent(rises['ood'])} and the training loss by {100 * train:+.0f} %: "
        f"{ends.get(verdict, 'this does not tell')}."
    )
    return Finding(verdict, rises[split], None, "largest relative change of a test loss after the peak", sentence)


def _training_rise(e: Evidence) -> float:
    """The relative change of the mean training loss from around the peak to the end, mean over seeds."""
    if e.training.empty:
        raise Missing("no training loss")
    width = max(1, round(WINDOW * e.end))
    changes = []
    for seed, peak in zip(e.seeds, e.peaks, strict=True):
        loss = e.training[e.training["seed"] == seed].set_index("step")["value"]
        around = loss[(loss.index >= peak * 2 / 3) & (loss.index <= peak * 4 / 3)]
        changes.append(loss[loss.index > e.end - width].mean() / around.mean() - 1)
    return float(np.mean(changes))


CLAIM = Rule("C2", __doc__, "%", rule)
