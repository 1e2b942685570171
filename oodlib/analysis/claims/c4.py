"""RL after SFT restores lost OOD accuracy, and does not exceed the early SFT peak"""

from collections.abc import Callable

import numpy as np

from oodlib.analysis.claims import LLAMA, NO_GAIN, Finding, Rule, arms_with, decide, listed, points
from oodlib.analysis.evidence import Evidence, Fall, Key, Missing
from oodlib.analysis.stats import Estimate, Scores

LOST = ("inside", "late")  # the starts at which at least a quarter of the fall has happened


def paper(e: Evidence) -> Finding:
    """Over the starts at which at least a quarter of the fall has happened. Estimate: OOD(RL) - OOD(start), their mean.
    Supported: above 0, and RL less than 5 points above the peak. Not supported: not above 0, or RL above the peak. The
    paper's number is LLaMA's, from the best of its 18 starts.
    """
    gain = _rl_less(e, lambda t, _: e.sft(t))
    over_peak = _rl_less(e, lambda _, peak: e.sft(peak))
    verdict = decide(gain.low > 0 and over_peak.high < NO_GAIN, gain.high <= 0 or over_peak.low > 0)
    parts = {"before the end of SFT": "inside", "at its end": "late"}
    apart = [
        f"; {where} {points(_rl_less(e, lambda t, _: e.sft(t), part))}"
        for where, part in parts.items()
        if all(getattr(fall, part) for fall in e.falls)
    ]
    sentence = (
        f"From checkpoints that have lost OOD accuracy RL changes it by {points(gain)} points{''.join(apart)}. It "
        f"ends {points(over_peak)} points from the SFT peak."
    )
    number = (LLAMA["rl"] - LLAMA["sft_end"]) / 100
    return Finding(verdict, gain, number, "OOD(RL) - OOD(start), starts that lost a quarter", sentence)


def baselines(e: Evidence) -> Finding:
    """The same starts. Estimate: OOD(RL) less that of the best baseline with equal information: the same problems and
    checker, updates, samples and learning rate. Supported: above EVERY such baseline. Not supported: not above one of
    them, with the whole interval. The sentence also names those with more information and those without training,
    which do not decide.
    """
    equal = arms_with(e, "equal")
    if not equal:
        raise Missing("RL is compared with no baseline of equal information")
    gaps = {arm: _rl_less(e, lambda t, _, arm=arm: e.arm(arm, t)) for arm in arms_with(e, "equal", "more", "none")}
    best = min(equal, key=lambda arm: gaps[arm].value)
    verdict = decide(all(gaps[arm].low > 0 for arm in equal), any(gaps[arm].high <= 0 for arm in equal))
    kinds = {"equal information": "equal", "more information": "more", "no training": "none"}
    named = [
        f"{kind}: " + listed(f"{label} {points(gaps[arm])}" for arm, label in arms_with(e, value).items())
        for kind, value in kinds.items()
        if arms_with(e, value)
    ]
    sentence = f"From these checkpoints RL ends above or below each baseline by (points): {'; '.join(named)}."
    return Finding(verdict, gaps[best], None, f"OOD(RL) - OOD({equal[best]})", sentence)


def _rl_less(e: Evidence, key: Callable[[int, int], Key], *parts: str) -> Estimate:
    """RL less the evaluation `key(start, peak)`, mean over the starts of these parts."""

    def gap(s: Scores, fall: Fall) -> float:
        starts = fall.starts(*(parts or LOST))
        return float(np.mean([s[e.arm("rl", t)] - s[key(t, fall.peak)] for t in starts]))

    return e.measure(gap)


CLAIM = Rule("C4", __doc__, "points", "arXiv:2509.12235v3", paper, baselines)
