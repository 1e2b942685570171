"""Restoration has a window: RL from too early or too late a checkpoint does not help"""

import numpy as np

from oodlib.analysis.claims import NO_GAIN, PAPER, Finding, Rule, decide, points
from oodlib.analysis.evidence import Evidence, Fall, Missing
from oodlib.analysis.stats import Scores


def rule(e: Evidence) -> Finding:
    """Inside the window: starts with at least a quarter of the fall behind them, before the end. Early: those before.
    Late: the end. Estimate: the mean change of OOD accuracy through RL inside, less that outside. Supported: the
    change inside above 0, above that of early and of late starts, and these below 5 points. Not supported: the
    change inside not above 0, or that of early or of late starts above 0, or above that inside.
    """

    def change(s: Scores, fall: Fall, part: str) -> float:
        starts = getattr(fall, part)
        if not starts:
            raise Missing(f"no {part} RL start")
        return float(np.mean([s[e.arm("rl", t)] - s[e.sft(t)] for t in starts]))

    gain = {p: e.measure(lambda s, fall, p=p: change(s, fall, p)) for p in ("inside", "early", "late", "outside")}
    gaps = {
        p: e.measure(lambda s, fall, p=p: change(s, fall, "inside") - change(s, fall, p))
        for p in ("early", "late", "outside")
    }
    ends = ("early", "late")
    verdict = decide(
        gain["inside"].low > 0 and all(gaps[p].low > 0 and gain[p].high < NO_GAIN for p in ends),
        gain["inside"].high <= 0 or any(gain[p].low > 0 or gaps[p].high <= 0 for p in ends),
    )
    sentence = (
        f"RL changes OOD accuracy by {points(gain['early'])} points from early starts, {points(gain['inside'])} from "
        f"starts inside the window and {points(gain['late'])} from the end."
    )
    quantity = "OOD change through RL, inside - outside the window"
    return Finding(verdict, gaps["outside"], _in_the_paper(), quantity, sentence)


def _in_the_paper() -> float:
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    low, high = PAPER["rl_window_llama_steps"]
    columns = (curve[name] for name in ("step", "sft", "rl_from_step"))
    gains = [(low <= t <= high, r - s) for t, s, r in zip(*columns, strict=True)]
    inside, outside = (np.mean([g for within, g in gains if within is part]) / 100 for part in (True, False))
    return float(inside - outside)


CLAIM = Rule("C5", __doc__, "points", rule)
