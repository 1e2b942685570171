"""Restoration has a window: RL from too early or too late a checkpoint does not help"""

import numpy as np

from oodlib.analysis.claims import NO_GAIN, PAPER, Finding, Rule, decide, points
from oodlib.analysis.evidence import Evidence, Fall
from oodlib.analysis.stats import Estimate, Scores

ENDS = ("early", "late")  # the starts outside the window


def rule(e: Evidence) -> Finding:
    """Inside the window: starts with at least a quarter of the fall behind them, before the end. Early: those before.
    Late: the end. Estimate: the mean change of OOD accuracy through RL inside, less that outside. Supported: the
    change inside above 0, above that of early and of late starts, and these below 5 points. Not supported: the
    change inside not above 0, or that of early or of late starts above 0, or above that inside.
    """

    def change(s: Scores, fall: Fall, *parts: str) -> float:
        return float(np.mean([s[e.arm("rl", t)] - s[e.sft(t)] for t in fall.starts(*parts)]))

    def inside_less(*parts: str) -> Estimate:
        return e.measure(lambda s, fall: change(s, fall, "inside") - change(s, fall, *parts))

    gain = {part: e.measure(lambda s, fall, part=part: change(s, fall, part)) for part in ("inside", *ENDS)}
    gaps = {part: inside_less(part) for part in ENDS}
    verdict = decide(
        gain["inside"].low > 0 and all(gaps[part].low > 0 and gain[part].high < NO_GAIN for part in ENDS),
        gain["inside"].high <= 0 or any(gain[part].low > 0 or gaps[part].high <= 0 for part in ENDS),
    )
    sentence = (
        f"RL changes OOD accuracy by {points(gain['early'])} points from early starts, {points(gain['inside'])} from "
        f"starts inside the window and {points(gain['late'])} from the end."
    )
    quantity = "OOD change through RL, inside - outside the window"
    return Finding(verdict, inside_less(*ENDS), _in_the_paper(), quantity, sentence)


def _in_the_paper() -> float:
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    low, high = PAPER["rl_window_llama_steps"]
    step, sft, rl = (np.array(curve[name]) for name in ("step", "sft", "rl_from_step"))
    inside = (low <= step) & (step <= high)
    return float((rl - sft)[inside].mean() / 100 - (rl - sft)[~inside].mean() / 100)


CLAIM = Rule("C5", __doc__, "points", rule)
