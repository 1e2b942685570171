"""From the same start and at equal ID accuracy, learning on-policy forgets less than SFT"""

import pandas as pd

from oodlib.analysis.claims import Finding, Rule, above_all, listed, points
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.mitigations import against_others, learners
from oodlib.analysis.same_start import ON_POLICY, called, learns_from_demonstrations
from oodlib.analysis.stats import Estimate

NEAREST = "sft_nearest"
NEAR = ("rejection_sampling", NEAREST)


def paper(e: Evidence) -> Finding:
    """From a checkpoint of SFT that keeps the format and has forgotten nothing yet. The arms that learn on-policy (RL,
    1-0 REINFORCE, fresh rejection sampling) against those that learn from demonstrations, the oracle of the nearest
    aside; those of them that end with more ID accuracy than the start. Estimate: OOD accuracy at equal ID accuracy, of
    the pair in which the on-policy arm leads least. Supported: above 0 in EVERY pair. Not supported: in one it is not,
    with the whole interval.
    """
    paths = _paths(e)
    others = [arm for arm in learners(paths) if learns_from_demonstrations(arm) and arm != NEAREST]
    return _found(paths, others)


def baselines(e: Evidence) -> Finding:
    """Is it being on-policy, or being near? The same arms against those that stay near without it: SFT on the model's
    own filtered answers, sampled once, and on the right answers that are nearest to it. Estimate: as before. Supported:
    above 0 in EVERY pair. Not supported: in one it is not, with the whole interval.
    """
    paths = _paths(e)
    return _found(paths, [arm for arm in learners(paths) if arm in NEAR])


def _paths(e: Evidence) -> pd.DataFrame:
    if e.same_start.empty or not set(ON_POLICY) & set(e.same_start["mitigation"]):
        raise Missing("RL and SFT from the same start are measured in the sweep of mitigations")
    return e.same_start


def _found(paths: pd.DataFrame, others: list[str]) -> Finding:
    gaps: dict[str, Estimate] = {}
    for arm in ON_POLICY:
        found = against_others(paths, arm)
        gaps |= {f"{called(arm)} - {called(other)}": found[other] for other in others if other in found}
    if not gaps:
        raise Missing("no two arms that are to be compared learn more than the start knows")
    best, verdict = above_all(gaps)
    parts = [f"{pair} {points(gap)}" for pair, gap in gaps.items()]
    sentence = f"OOD accuracy at equal ID accuracy (points): {listed(parts)}."
    return Finding(verdict, gaps[best], None, f"OOD, {best}, at equal ID accuracy", sentence)


CLAIM = Rule("C13", __doc__, "points", "arXiv:2509.04259", paper, baselines)
