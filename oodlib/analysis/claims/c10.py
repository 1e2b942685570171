"""Holding the leading singular vectors in place during SFT (RPSFT) keeps OOD accuracy"""

import pandas as pd

from oodlib.analysis.claims import Finding, Rule, decide, listed, points
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.stats import Estimate, over_seeds

PLAIN, RPSFT = "plain SFT", "RPSFT"
OTHERS = ("lower rate", "cosine", "averaging")  # cheap ways to change the weights less
ALIKE = 0.02  # of ID accuracy: a mitigation that ends further below RPSFT is no match


def paper(e: Evidence) -> Finding:
    """Estimate: OOD accuracy at the end of SFT with RPSFT, less that of plain SFT, paired within a seed. Supported:
    above 0. Not supported: below 0.
    """
    kept, learnt = _rpsft_less(e, PLAIN, "headline"), _rpsft_less(e, PLAIN, "trained")
    sentence = f"RPSFT ends {points(kept)} points of OOD and {points(learnt)} points of ID accuracy from plain SFT."
    return Finding(decide(kept.low > 0, kept.high < 0), kept, None, "OOD(RPSFT) - OOD(plain SFT)", sentence)


def baselines(e: Evidence) -> Finding:
    """At equal ID accuracy: against a lower rate, a cosine and averaged weights, those that end at most 2 points of ID
    accuracy below RPSFT. Estimate: OOD(RPSFT) less that of the best of them. Supported: above EVERY one. Not supported:
    not above one of them, with the whole interval.
    """
    measured = [name for name in OTHERS if name in set(_table(e)["mitigation"])]
    id_ = {name: _rpsft_less(e, name, "trained") for name in measured}
    gaps = {name: _rpsft_less(e, name, "headline") for name in measured}
    alike = [name for name in measured if id_[name].value <= ALIKE]
    if not alike:
        raise Missing(f"of {listed(OTHERS)} none was measured that keeps RPSFT's ID accuracy")
    best = min(alike, key=lambda name: gaps[name].value)
    verdict = decide(all(gaps[name].low > 0 for name in alike), any(gaps[name].high <= 0 for name in alike))
    parts = [
        f"{name} {points(gaps[name])} (ID {points(id_[name])}{'' if name in alike else ', not counted'})"
        for name in measured
    ]
    sentence = f"RPSFT's OOD accuracy, less that of each mitigation (points): {listed(parts)}."
    return Finding(verdict, gaps[best], None, f"OOD(RPSFT) - OOD({best}), at equal ID accuracy", sentence)


def _table(e: Evidence) -> pd.DataFrame:
    table = e.mitigations
    if table.empty or not {PLAIN, RPSFT} <= set(table["mitigation"]):
        raise Missing("mitigations are measured in the sweep")
    return table


def _rpsft_less(e: Evidence, name: str, column: str) -> Estimate:
    by_seed = _table(e).pivot(index="seed", columns="mitigation", values=column)
    return over_seeds((by_seed[RPSFT] - by_seed[name]).dropna())


CLAIM = Rule("C10", __doc__, "points", "arXiv:2605.10973", paper, baselines)
