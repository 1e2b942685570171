"""SFT rotates hard, RL softly"""

import numpy as np
import pandas as pd

from oodlib.analysis.claims import Finding, Rule, decide
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.stats import Estimate, bootstrap, over_seeds

CONTINUED = "arm == 'sft_continued'"


def paper(e: Evidence) -> Finding:
    """As trained. Estimate: the mean principal angle from the base to the end of SFT, over that from RL's starts to
    its ends. Supported: above 1. Not supported: below 1. One seed: bootstrap over weight matrices; several: on the
    logarithm of the ratio.
    """
    times = _times(e, f"arm == 'sft' and from_step == 0 and step == {e.end}")
    sentence = f"The whole of SFT turns the leading directions {times.text('.2f')} times as far as RL does after it."
    quantity = "angle through all of SFT / angle through RL"
    return Finding(decide(times.low > 1, times.high < 1), times, None, quantity, sentence)


def baselines(e: Evidence) -> Finding:
    """Continued SFT and RL from the same checkpoints, with the same updates and learning rate: the ratio of their mean
    principal angles, and the ratio of these angles per point of ID accuracy gained (over all starts; both must gain).
    Estimate: the smaller of the two ratios. Supported: both above 1. Not supported: one below 1. Intervals as in the
    other test; for one seed the gains are taken as measured.
    """

    def gain(arm: str) -> np.ndarray:
        """ID accuracy gained, by seed."""
        starts = e.scores(e.splits.trained)
        return np.array([np.mean([s[e.arm(arm, t)] - s[e.sft(t)] for t in e.starts]) for s in starts])

    equal = _times(e, CONTINUED)
    sft, rl = gain("sft_continued"), gain("rl")
    if min(*sft, *rl) <= 0:
        raise Missing("continued SFT or RL gains no ID accuracy, so there is no angle a point gained")
    per_gain = _times(e, CONTINUED, rl / sft)
    both = (equal, per_gain)
    sentence = (
        f"With equal updates and learning rate SFT turns the leading directions {equal.text('.2f')} times as far as "
        f"RL; a point of ID accuracy gained, {per_gain.text('.2f')} times as far."
    )
    quantity = "angle through SFT / angle through RL, at equal updates or at equal ID gain"
    verdict = decide(all(x.low > 1 for x in both), any(x.high < 1 for x in both))
    return Finding(verdict, min(both, key=lambda x: x.value), None, quantity, sentence)


def _times(e: Evidence, sft: str, factor: np.ndarray | None = None) -> Estimate:
    """The mean angle of the rows `sft` (a query) over RL's, times a factor a seed."""
    if e.rotation.empty:
        raise Missing("no spectra")
    rotation = e.rotation.astype({"arm": str, "module": str, "metric": str})
    angles, keys = rotation[rotation["metric"].str.startswith("angle")], ["seed", "layer", "module", "metric"]
    means = [angles.query(rows).groupby(keys)["value"].mean() for rows in (sft, "arm == 'rl'")]
    if not all(set(e.seeds) <= set(of_arm.index.get_level_values("seed")) for of_arm in means):
        raise Missing("no angles of RL and of SFT")
    both = pd.concat(means, axis=1, join="inner")
    factor = np.ones(len(e.seeds)) if factor is None else factor
    by_seed = [both.loc[seed].to_numpy() * [f, 1] for seed, f in zip(e.seeds, factor, strict=True)]

    def ratio(table: np.ndarray) -> float:
        return float(table[:, 0].mean() / table[:, 1].mean())

    if len(by_seed) == 1:
        return bootstrap(len(by_seed[0]), lambda picks: ratio(by_seed[0][picks]), "matrices")
    log = over_seeds([np.log(ratio(t)) for t in by_seed])
    return Estimate(*np.exp([log.value, log.low, log.high]).tolist(), log.n, "seeds")


CLAIM = Rule("C9", __doc__, "times", "arXiv:2509.12235v1, not in v3's abstract", paper, baselines)
