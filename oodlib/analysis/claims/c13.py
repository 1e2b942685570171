"""From the same start and at equal ID accuracy, learning on-policy forgets less than SFT"""

import pandas as pd

from oodlib.analysis.claims import Finding, Rule, above_all, listed, points
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.mitigations import against_others
from oodlib.analysis.same_start import ON_POLICY, called, learns_from_demonstrations
from oodlib.analysis.stats import Estimate

NEAREST = "sft_nearest"


def paper(e: Evidence) -> Finding:
    """From a checkpoint of SFT that keeps the format and has forgotten nothing yet. Estimate: RL's highest OOD accuracy
    at equal ID accuracy, less that of the best arm that learns from demonstrations, the oracle of the nearest aside.
    Supported: above EVERY one. Not supported: not above one of them, with the whole interval.
    """
    gaps = against_others(_paths(e), "rl")
    return _found({name: gap for name, gap in gaps.items() if learns_from_demonstrations(name) and name != NEAREST})


def baselines(e: Evidence) -> Finding:
    """Is it being on-policy, or being near? RL against arms that stay near without it: SFT on the model's own filtered
    answers, sampled once, and on the right answers that are nearest to it. Estimate: RL's OOD accuracy at equal ID
    accuracy, less that of the better. Supported: above BOTH. Not supported: not above one, with the whole interval.
    """
    near = ("rejection_sampling", NEAREST)
    return _found({name: gap for name, gap in against_others(_paths(e), "rl").items() if name in near})


def _paths(e: Evidence) -> pd.DataFrame:
    if e.same_start.empty or not set(ON_POLICY) & set(e.same_start["mitigation"]):
        raise Missing("RL and SFT from the same start are measured in the sweep of mitigations")
    return e.same_start


def _found(gaps: dict[str, Estimate]) -> Finding:
    if not gaps:
        raise Missing("nothing to compare RL with was measured")
    best, verdict = above_all(gaps)
    parts = [f"{called(name)} {points(gap)}" for name, gap in gaps.items()]
    sentence = f"RL's OOD accuracy at equal ID accuracy, less that of each arm (points): {listed(parts)}."
    return Finding(verdict, gaps[best], None, f"OOD(RL) - OOD({called(best)}), at equal ID accuracy", sentence)


CLAIM = Rule("C13", __doc__, "points", "arXiv:2509.04259", paper, baselines)
