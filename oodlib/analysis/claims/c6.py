"""Inside the window RL's advantages are spread flat; outside they are skewed"""

import numpy as np
from scipy.stats import rankdata, skew

from oodlib.analysis.claims import Finding, Rule, decide
from oodlib.analysis.evidence import Evidence, Fall, Missing
from oodlib.analysis.stats import SEVERAL, bootstrap, over_seeds

POINTS = 6  # fewer starts and seeds tell nothing of a partial correlation
SEEDS = 5  # from so many on, seeds are resampled rather than points


def paper(e: Evidence) -> Finding:
    """Estimate: the mean absolute skewness of the advantages outside the window of C5, less that inside.
    Supported: above 0. Not supported: below 0. One or two seeds: bootstrap over groups (prompts).
    """

    def contrast(groups: dict[int, np.ndarray], fall: Fall, rows: object = slice(None)) -> float:
        skews = _skewnesses({t: g[rows] for t, g in groups.items()})
        inside, outside = (
            [skews[t] for t in fall.starts(*parts) if np.isfinite(skews.get(t, np.nan))]
            for parts in (("inside",), ("early", "late"))
        )
        if not inside or not outside:
            raise Missing("no advantages on one side of the window")
        return float(np.mean(outside) - np.mean(inside))

    by_seed = [(_advantages(e, seed), fall) for seed, fall in zip(e.seeds, e.falls, strict=True)]
    if len(by_seed) >= SEVERAL:
        gap = over_seeds([contrast(*seed) for seed in by_seed])
    else:
        having = [seed for seed in by_seed if seed[0]]
        n = min((len(groups) for of, _ in having for groups in of.values()), default=0)
        if not n:
            raise Missing("no advantages")
        gap = bootstrap(n, lambda picks: np.mean([contrast(*seed, picks) for seed in having]), "groups")
    sentence = (
        f"The absolute skewness of the advantages outside the window, less that inside, is {gap.text()}. "
        "(The window is set by the fall of OOD accuracy, not by any healing.)"
    )
    return Finding(decide(gap.low > 0, gap.high < 0), gap, None, "|skewness| of advantages, outside - inside", sentence)


def baselines(e: Evidence) -> Finding:
    """Does skewness say more than the start's ID accuracy? Estimate: the partial rank correlation, over starts and
    seeds (at least six), of the advantages' absolute skewness with the change of OOD accuracy through RL, given the ID
    accuracy at the start. Supported: below 0 (less is restored where advantages are skewed). Not supported: above 0.
    Bootstrap over seeds where there are five or more, else over points.
    """
    by_seed = []
    for seed, id_, ood in zip(e.seeds, e.scores(e.splits.trained), e.scores(e.splits.headline), strict=True):
        skews = _skewnesses({t: groups for t, groups in _advantages(e, seed).items() if t in e.starts})
        rows = [(x, ood[e.arm("rl", t)] - ood[e.sft(t)], id_[e.sft(t)]) for t, x in skews.items() if np.isfinite(x)]
        by_seed.append(np.array(rows).reshape(-1, 3))
    every = np.concatenate(by_seed)
    if len(every) < POINTS:
        raise Missing(f"{len(every)} starts and seeds with advantages, and {POINTS} are asked for")
    if len(by_seed) < SEEDS:
        x = bootstrap(len(every), lambda picks: _partial(every[picks]), "starts")
    else:
        x = bootstrap(len(by_seed), lambda picks: _partial(np.concatenate([by_seed[i] for i in picks])), "seeds")
    sentence = (
        f"Over {len(every)} starts and seeds, given the start's ID accuracy, the rank correlation of the advantages' "
        f"absolute skewness with the OOD change through RL is {x.text()}."
    )
    quantity = "correlation of |skewness| with RL's OOD change, given the start's ID accuracy"
    return Finding(decide(x.high < 0, x.low > 0), x, None, quantity, sentence)


def _partial(rows: np.ndarray) -> float:
    """The partial rank correlation of the first two columns, given the third; 0 where one of them does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        (_, xy, xz), (_, _, yz), _ = np.corrcoef(rankdata(rows, axis=0), rowvar=False)
        r = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    return float(np.clip(r, -1, 1)) if np.isfinite(r) else 0.0


def _skewnesses(advantages: dict[int, np.ndarray]) -> dict[int, float]:
    """The absolute skewness of each start's; NaN where all advantages are equal."""
    found = dict.fromkeys(advantages, np.nan)
    spread = {t: values.ravel() for t, values in advantages.items() if np.ptp(values)}
    for size in {len(values) for values in spread.values()}:  # at once, for scipy looks at its arguments at length
        alike = [t for t, values in spread.items() if len(values) == size]
        found |= dict(zip(alike, np.abs(skew([spread[t] for t in alike], axis=1)).tolist(), strict=True))
    return found


def _advantages(e: Evidence, seed: int) -> dict[int, np.ndarray]:
    """By start, RL's advantages as [groups, samples a group]."""
    groups = {}
    for start, frame in e.rollouts[e.rollouts["seed"] == seed].groupby("from_step"):
        size = int(frame.groupby("group").size().mode().iloc[0])
        groups[int(start)] = frame["advantage"].to_numpy()[: len(frame) // size * size].reshape(-1, size)
    return groups


CLAIM = Rule("C6", __doc__, "", "arXiv:2509.12235v1", paper, baselines)
