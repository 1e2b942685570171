"""Restoration has a window: RL from too early or too late a checkpoint does not help"""

import numpy as np

from oodlib.analysis.claims import NO_GAIN, PAPER, Finding, Rule, above_all, arms_with, decide, listed, points
from oodlib.analysis.evidence import Evidence, Fall, Missing
from oodlib.analysis.stats import Scores

ENDS = ("early", "late")  # the starts outside the window


def paper(e: Evidence) -> Finding:
    """Inside the window: starts with at least a quarter of the fall behind them, before the end. Early: those before.
    Late: the end. Estimate: the mean change of OOD accuracy through RL inside, less that outside. Supported: the
    change inside above 0, above that of early and of late starts, and these below 5 points. Not supported: the
    change inside not above 0, or that of early or of late starts above 0, or above that inside.
    """
    gain = {part: e.measure(lambda s, fall, part=part: _change(e, s, fall, part)) for part in ("inside", *ENDS)}
    gaps = {part: e.measure(lambda s, fall, part=part: _contrast(e, s, fall, part)) for part in ENDS}
    verdict = decide(
        gain["inside"].low > 0 and all(gaps[part].low > 0 and gain[part].high < NO_GAIN for part in ENDS),
        gain["inside"].high <= 0 or any(gain[part].low > 0 or gaps[part].high <= 0 for part in ENDS),
    )
    sentence = (
        f"RL changes OOD accuracy by {points(gain['early'])} points from early starts, {points(gain['inside'])} from "
        f"starts inside the window and {points(gain['late'])} from the end."
    )
    window = e.measure(lambda s, fall: _contrast(e, s, fall, *ENDS))
    return Finding(verdict, window, _in_the_paper(), "OOD change through RL, inside - outside the window", sentence)


def baselines(e: Evidence) -> Finding:
    """Is the window RL's own? Estimate: RL's change inside the window less that outside, less the same of the baseline
    where that is largest. Supported: above that of EVERY baseline. Not supported: not above that of one, with the whole
    interval.
    """
    arms = arms_with(e, "equal", "more", "none")
    if not arms:
        raise Missing("RL is compared with no baseline")
    windows = {arm: e.measure(lambda s, fall, arm=arm: _contrast(e, s, fall, *ENDS, arm=arm)) for arm in ("rl", *arms)}

    def own(s: Scores, fall: Fall, arm: str) -> float:
        return _contrast(e, s, fall, *ENDS) - _contrast(e, s, fall, *ENDS, arm=arm)

    gaps = {arm: e.measure(lambda s, fall, arm=arm: own(s, fall, arm)) for arm in arms}
    best, verdict = above_all(gaps)
    others = listed(f"{label} {points(windows[arm])}" for arm, label in arms.items())
    sentence = f"The OOD change inside the window less that outside is {points(windows['rl'])} points for RL; {others}."
    return Finding(verdict, gaps[best], None, f"inside - outside: RL's less that of {arms[best]}", sentence)


def _change(e: Evidence, s: Scores, fall: Fall, *parts: str, arm: str = "rl") -> float:
    return float(np.mean([s[e.arm(arm, t)] - s[e.sft(t)] for t in fall.starts(*parts)]))


def _contrast(e: Evidence, s: Scores, fall: Fall, *parts: str, arm: str = "rl") -> float:
    return _change(e, s, fall, "inside", arm=arm) - _change(e, s, fall, *parts, arm=arm)


def _in_the_paper() -> float:
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    low, high = PAPER["rl_window_llama_steps"]
    step, sft, rl = (np.array(curve[name]) for name in ("step", "sft", "rl_from_step"))
    inside = (low <= step) & (step <= high)
    return float((rl - sft)[inside].mean() / 100 - (rl - sft)[~inside].mean() / 100)


CLAIM = Rule("C5", __doc__, "points", "arXiv:2509.12235v3", paper, baselines)
