"""SFT rotates hard, RL softly"""

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import pandas as pd

from oodlib.analysis.claims import Finding, Rule, decide
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.stats import SEVERAL, Estimate, Scores, bootstrap, over_seeds

CONTINUED = "arm == 'sft_continued'"
ROUNDING = 1e-9  # radians; below it an angle is one of float64 alone


def paper(e: Evidence) -> Finding:
    """As trained. Estimate: the mean principal angle from the base to the end of SFT, over that from RL's starts to
    its ends. Supported: above 1. Not supported: below 1. One or two seeds: bootstrap over weight matrices; more: over
    seeds. Both of the logarithm of the ratio.
    """
    times = _times(e, f"arm == 'sft' and from_step == 0 and step == {e.end}")
    sentence = f"The whole of SFT turns the leading directions {times.text('.2f')} times as far as RL does after it."
    quantity = "angle through all of SFT / angle through RL"
    return Finding(decide(times.low > 1, times.high < 1), times, None, quantity, sentence)


def baselines(e: Evidence) -> Finding:
    """Continued SFT and RL from the same checkpoints, with the same updates and learning rate: the ratio of their mean
    principal angles, and the ratio of these angles per point of ID accuracy gained (over all starts; both must gain).
    Estimate: the smaller of the two ratios. Supported: both above 1. Not supported: one below 1. Intervals as in the
    other test; for one or two seeds the gains are taken as measured.
    """

    def gain(arm: str, s: Scores) -> float:
        """ID accuracy gained."""
        return float(np.mean([s[e.arm(arm, t)] - s[e.sft(t)] for t in e.starts]))

    equal, gained = _times(e, CONTINUED), {}
    for seed, scores in zip(e.seeds, e.scores(e.splits.trained), strict=True):
        with suppress(Missing):  # of two seeds one may lack the arms
            gained[seed] = gain("sft_continued", scores), gain("rl", scores)
    if not gained or min(min(both) for both in gained.values()) <= 0:
        told = f"at equal updates and learning rate SFT turns {equal.text('.2f')} times as far as RL"
        raise Missing(f"continued SFT or RL gains no ID accuracy, so there is no angle a point gained; {told}")
    per_gain = _times(e, CONTINUED, {seed: rl / sft for seed, (sft, rl) in gained.items()})
    both = (equal, per_gain)
    sentence = (
        f"With equal updates and learning rate SFT turns the leading directions {equal.text('.2f')} times as far as "
        f"RL; a point of ID accuracy gained, {per_gain.text('.2f')} times as far."
    )
    quantity = "angle through SFT / angle through RL, at equal updates or at equal ID gain"
    verdict = decide(all(x.low > 1 for x in both), any(x.high < 1 for x in both))
    return Finding(verdict, min(both, key=lambda x: x.value), None, quantity, sentence)


def _times(e: Evidence, sft: str, factor: Mapping[int, float] | None = None) -> Estimate:
    """The mean angle of the rows `sft` (a query) over RL's, times a factor a seed."""
    if e.rotation.empty:
        raise Missing("no spectra")
    rotation = e.rotation.astype({"arm": str, "module": str, "metric": str})
    angles, keys = rotation[rotation["metric"].str.startswith("angle")], ["seed", "layer", "module", "metric"]
    means = [angles.query(rows).groupby(keys)["value"].mean() for rows in (sft, "arm == 'rl'")]
    both = pd.concat(means, axis=1, join="inner")
    having = sorted(set(both.index.get_level_values("seed")))
    if not having or (set(having) != set(e.seeds) and len(e.seeds) >= SEVERAL):
        raise Missing("no angles of RL and of SFT")
    if not (both.groupby("seed").max() > ROUNDING).all(axis=None):
        raise Missing("SFT or RL changed no weight")
    by_seed = [both.loc[seed].to_numpy() * [factor[seed] if factor else 1, 1] for seed in having]

    def log_ratio(table: np.ndarray) -> float:
        return float(np.log(table[:, 0].mean() / table[:, 1].mean()))

    if len(e.seeds) < SEVERAL:
        log = bootstrap(len(by_seed[0]), lambda picks: np.mean([log_ratio(t[picks]) for t in by_seed]), "matrices")
    else:
        log = over_seeds([log_ratio(t) for t in by_seed])
    return Estimate(*np.exp([log.value, log.low, log.high]).tolist(), log.n, log.unit)


CLAIM = Rule("C9", __doc__, "times", "arXiv:2509.12235v1, not in v3's abstract", paper, baselines)
