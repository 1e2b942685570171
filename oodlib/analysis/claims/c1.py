"""OOD accuracy peaks early in SFT, then falls while ID accuracy rises"""

import numpy as np

from oodlib.analysis.claims import LLAMA, NO_GAIN, Finding, Rule, by_corner, decide, listed, mean_at, points
from oodlib.analysis.evidence import Evidence, Fall
from oodlib.analysis.stats import Scores

EARLY = 0.15  # "early" is within this share of the SFT steps


def paper(e: Evidence) -> Finding:
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
    rise = e.measure(lambda s, fall: s[e.sft(e.end)] - s[e.sft(fall.peak)], e.splits.trained)
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
    lowest = min(after, key=lambda t: mean_at(e, e.splits.trained, t))
    dip = e.measure(lambda s, fall: s[e.sft(lowest)] - s[e.sft(fall.peak)], e.splits.trained)
    if not dip.high < 0:
        return ""
    return (
        f" ID accuracy falls too at first, to {mean_at(e, e.splits.trained, lowest):.1%} at step {lowest} "
        f"({points(dip)} points): not all of the early fall is forgetting."
    )


def baselines(e: Evidence) -> Finding:
    """Is the rule forgotten, or the numbers (in navigation: the words)? The paper reads the fall as a loss of OOD
    ability as a whole; then a new rule is lost whichever numbers it needs. Estimate: the fall of accuracy from the OOD
    peak to the end where the rule alone is new, less the fall where the numbers alone are new. Supported (the rule is
    lost): the former is above 0 and the estimate above -5 points. Not supported: the former is not above 0, or the
    estimate is below -5 points (the numbers are lost, the rule less or not at all), with the whole interval.
    """
    rule = e.changing("rule")
    numbers = e.changing(*(change for change in e.splits.headline.changes if change != "rule"))

    def fell(s: Scores, fall: Fall) -> float:
        return s[e.sft(fall.peak)] - s[e.sft(e.end)]

    alone = e.measure(fell, rule)
    gap = e.measure(lambda of_rule, of_numbers, fall: fell(of_rule, fall) - fell(of_numbers, fall), rule, numbers)
    read = e.measure(lambda s, both, fall: fell(both, fall) - fell(s, fall), numbers, e.splits.headline)
    verdict = decide(alone.low > 0 and gap.low > -NO_GAIN, alone.high <= 0 or gap.high < -NO_GAIN)
    changes = by_corner(e, lambda s, fall: -fell(s, fall))
    corners = listed(
        f"{s.label} {mean_at(e, s):.0%} to {mean_at(e, s, e.end):.0%} ({points(changes[s.label])} points)"
        for s in e.splits
    )
    sentence = (
        f"From the OOD peak to the end accuracy goes: {corners}. On the same hands {e.splits.headline.label} falls by "
        f"{points(read)} points more than {numbers.label} does."
    )
    return Finding(verdict, gap, None, f"fall({rule.label}) - fall({numbers.label}), peak to end", sentence)


CLAIM = Rule("C1", __doc__, "points", "arXiv:2509.12235v3", paper, baselines)
