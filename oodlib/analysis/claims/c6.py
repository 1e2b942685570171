"""Inside the window RL's advantages are spread flat; outside they are skewed"""

import numpy as np
from scipy.stats import skew

from oodlib.analysis.claims import Finding, Rule, decide
from oodlib.analysis.evidence import Evidence, Fall, Missing
from oodlib.analysis.stats import bootstrap, over_seeds


def rule(e: Evidence) -> Finding:
    """Estimate: the mean absolute skewness of the advantages outside the window of C5, less that inside.
    Supported: above 0. Not supported: below 0. One seed: bootstrap over groups (prompts).
    """

    def contrast(groups: dict[int, np.ndarray], fall: Fall, rows: object = slice(None)) -> float:
        skews = {t: abs(float(skew(g[rows].ravel()))) for t, g in groups.items()}
        inside, outside = (
            [skews[t] for t in fall.starts(*parts) if t in skews] for parts in (("inside",), ("early", "late"))
        )
        if not inside or not outside:
            raise Missing("no advantages on one side of the window")
        return float(np.mean(outside) - np.mean(inside))

    by_seed = [_advantages(e, seed) for seed in e.seeds]
    gap = over_seeds([contrast(groups, fall) for groups, fall in zip(by_seed, e.falls, strict=True)])
    if len(by_seed) == 1:
        n = min(map(len, by_seed[0].values()))
        gap = bootstrap(n, lambda picks: contrast(by_seed[0], e.falls[0], picks), "groups")
    sentence = (
        f"The absolute skewness of the advantages outside the window, less that inside, is {gap.text()}. "
        "(The window is set by the fall of OOD accuracy, not by any healing.)"
    )
    return Finding(decide(gap.low > 0, gap.high < 0), gap, None, "|skewness| of advantages, outside - inside", sentence)


def _advantages(e: Evidence, seed: int) -> dict[int, np.ndarray]:
    """By start, RL's advantages as [groups, samples a group]."""
    groups = {}
    for start, frame in e.rollouts[e.rollouts["seed"] == seed].groupby("from_step"):
        size = int(frame.groupby("group").size().mode().iloc[0])
        groups[int(start)] = frame["advantage"].to_numpy()[: len(frame) // size * size].reshape(-1, size)
    return groups


CLAIM = Rule("C6", __doc__, "", rule)
