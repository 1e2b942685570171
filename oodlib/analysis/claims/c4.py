"""RL after SFT restores lost OOD accuracy, and does not exceed the early SFT peak"""

from collections.abc import Callable

import numpy as np

from oodlib.analysis.claims import NO_GAIN, SMALL, Finding, Rule, decide, points
from oodlib.analysis.evidence import Evidence, Fall, Key, Missing
from oodlib.analysis.stats import Estimate, Scores
from oodlib.registry import BASELINES


def rule(e: Evidence) -> Finding:
    """Over the starts at which at least a quarter of the fall has happened. Supported: RL brings back more than
    10 % of what is lost there, ends above EVERY baseline that trains (same updates, samples, learning rate; at least
    two), and less than 5 points above the peak. Not supported: RL ends below its start, not above a baseline, or above
    the peak, each with the whole interval. Estimate: RL less the best of these baselines.
    """
    trained = [arm for arm in e.arms if _trains(arm)]
    if len(trained) < 2:
        raise Missing(f"RL is compared with {len(trained)} baselines that train, and two are asked for")

    def rl_less(key: Callable[[int, int], Key], share: float = 0.0) -> Estimate:
        """RL less the evaluation `key(start, peak)`, and less a share of what is lost at the start."""

        def gap(s: Scores, fall: Fall) -> float:
            starts = fall.starts("inside", "late")
            bars = [share * (s[e.sft(fall.peak)] - s[e.sft(t)]) for t in starts]
            gains = [s[e.arm("rl", t)] - s[key(t, fall.peak)] for t in starts]
            return float(np.mean(gains) - np.mean(bars))

        return e.measure(gap)

    gained, enough = rl_less(lambda t, _: e.sft(t)), rl_less(lambda t, _: e.sft(t), SMALL)
    over_peak = rl_less(lambda _, peak: e.sft(peak))
    gaps = {name: rl_less(lambda t, _, name=name: e.arm(name, t)) for name in trained}
    best = min(gaps, key=lambda name: gaps[name].value)
    verdict = decide(
        enough.low > 0 and all(g.low > 0 for g in gaps.values()) and over_peak.high < NO_GAIN,
        gained.high <= 0 or any(g.high <= 0 for g in gaps.values()) or over_peak.low > 0,
    )
    sentence = (
        f"From checkpoints that have lost OOD accuracy RL changes it by {points(gained)} points; against "
        + " and ".join(f"{BASELINES.get(name).label} it ends {points(gap)}" for name, gap in gaps.items())
        + f"; against the SFT peak {points(over_peak)}."
    )
    quantity = "OOD(RL) - OOD(better baseline), starts that lost a quarter"
    return Finding(verdict, gaps[best], None, quantity, sentence)


def _trains(arm: str) -> bool:
    """Whether an arm is a baseline that learns from right answers."""
    try:
        return BASELINES.get(arm).trains
    except ValueError:  # RL itself, or a baseline from elsewhere that is not installed here
        return False


CLAIM = Rule("C4", __doc__, "points", rule)
