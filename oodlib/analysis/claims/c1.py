"""OOD accuracy peaks early in SFT, then falls while ID accuracy rises"""

import numpy as np

from oodlib.analysis.claims import LLAMA, Finding, Rule, decide, points
from oodlib.analysis.evidence import Evidence, Fall
from oodlib.analysis.stats import Scores

EARLY = 0.15  # "early" is within this share of the SFT steps


def rule(e: Evidence) -> Finding:
    """Estimate: OOD(peak) - OOD(end), the peak chosen on one half of the problems and measured on the other, so
    that the best of many noisy numbers is not taken at its face. Supported: above 0, ID(end) - ID(peak) above
    0, and every seed's peak within the first 15 % of the steps. Not supported: either of the two not above 0
    with its whole interval, or no seed's peak that early.
    """

    def drop(scores: Scores, _: Fall) -> float:
        even, odd = scores.halves()
        drops = []
        for chosen, measured in ((even, odd), (odd, even)):
            peak = max(e.steps, key=lambda t, half=chosen: half[e.sft(t)])
            drops.append(measured[e.sft(peak)] - measured[e.sft(e.end)])
        return float(np.mean(drops))

    lost = e.measure(drop)
    rise = e.measure(lambda s, fall: s[e.sft(e.end)] - s[e.sft(fall.peak)], split="id")
    early = [0 < p <= EARLY * e.end for p in e.peaks]
    verdict = decide(lost.low > 0 and rise.low > 0 and all(early), lost.high <= 0 or rise.high <= 0 or not any(early))
    steps = ", ".join(map(str, sorted(set(e.peaks))))
    sentence = (
        f"OOD accuracy is highest at step {steps} of {e.end} and is {points(lost)} points above that at the end, "
        f"while ID accuracy changes by {points(rise)} points.{_dip(e)}"
    )
    return Finding(verdict, lost, (LLAMA["sft_peak"] - LLAMA["sft_end"]) / 100, "OOD(peak) - OOD(end)", sentence)


def _dip(e: Evidence) -> str:
    """Whether ID accuracy falls as well just after the OOD peak, in words; means over seeds."""
    after = [t for t in e.steps if t >= max(e.peaks)]
    lowest = min(after, key=lambda t: np.mean([s[e.sft(t)] for s in e.scores("id")]))
    accuracy = np.mean([s[e.sft(lowest)] for s in e.scores("id")])
    dip = e.measure(lambda s, fall: s[e.sft(lowest)] - s[e.sft(fall.peak)], split="id")
    if not dip.high < 0:
        return ""
    return (
        f" ID accuracy falls too at first, to {accuracy:.1%} at step {lowest} ({points(dip)} points): not all of "
        "the early fall is forgetting of the rule."
    )


CLAIM = Rule("C1", __doc__, "points", rule)
