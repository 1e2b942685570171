"""Holding the leading singular vectors in place during SFT (RPSFT) keeps OOD accuracy"""

import pandas as pd

from oodlib.analysis.claims import Finding, Rule, above_all, decide, listed, points
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.mitigations import against_others, difference, ends
from oodlib.analysis.stats import Estimate

PLAIN, RPSFT = "plain SFT", "RPSFT"
OTHERS = ("lower rate", "cosine", "averaging")  # cheap ways to change the weights less


def paper(e: Evidence) -> Finding:
    """Estimate: OOD accuracy at the end of SFT with RPSFT, less that of plain SFT, paired within a seed. Supported:
    above 0. Not supported: below 0.
    """
    at_end = ends(_along(e))
    kept, learnt = (_measured(difference(at_end, split, RPSFT, PLAIN)) for split in ("headline", "trained"))
    sentence = f"RPSFT ends {points(kept)} points of OOD and {points(learnt)} points of ID accuracy from plain SFT."
    return Finding(decide(kept.low > 0, kept.high < 0), kept, None, "OOD(RPSFT) - OOD(plain SFT)", sentence)


def baselines(e: Evidence) -> Finding:
    """Against a lower rate, a cosine and averaged weights at equal ID accuracy: the highest that both reach at their
    ends, each with the highest OOD accuracy on its path that has so much. Estimate: OOD(RPSFT) less that of the best of
    them. Supported: above EVERY one. Not supported: not above one of them, with the whole interval.
    """
    gaps = {name: gap for name, gap in against_others(_along(e), RPSFT).items() if name in OTHERS}
    if not gaps:
        raise Missing(f"of {listed(OTHERS)} none was measured")
    best, verdict = above_all(gaps)
    parts = [f"{name} {points(gap)}" for name, gap in gaps.items()]
    sentence = f"RPSFT's OOD accuracy at equal ID accuracy, less that of each mitigation (points): {listed(parts)}."
    return Finding(verdict, gaps[best], None, f"OOD(RPSFT) - OOD({best}), at equal ID accuracy", sentence)


def _along(e: Evidence) -> pd.DataFrame:
    if e.mitigations.empty or RPSFT not in set(e.mitigations["mitigation"]):
        raise Missing("mitigations are measured in the sweep, and notebook 06 judges them")
    return e.mitigations


def _measured(found: Estimate | None) -> Estimate:
    if found is None:
        raise Missing(f"no seed has both {RPSFT} and {PLAIN}")
    return found


CLAIM = Rule("C10", __doc__, "points", "arXiv:2605.10973", paper, baselines)
