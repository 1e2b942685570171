"""SFT rotates hard, RL softly"""

import numpy as np

from oodlib.analysis.claims import Finding, Rule, decide
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.stats import Estimate, bootstrap, over_seeds


def rule(e: Evidence) -> Finding:
    """Estimate: the mean principal angle that continued SFT makes, over RL's, from the same checkpoints with the
    same updates and learning rate. Supported: above 1. Not supported: below 1. One seed: bootstrap over
    weight matrices; several: on the logarithm of the ratio.
    """
    rotation = e.rotation.astype({"arm": str, "module": str, "metric": str})
    angles = rotation[rotation["metric"].str.startswith("angle") & rotation["arm"].isin(["rl", "sft_continued"])]
    means = angles.groupby(["seed", "layer", "module", "metric", "arm"])["value"].mean().unstack("arm")
    if list(means.columns) != ["rl", "sft_continued"]:
        raise Missing("no angles of RL and of continued SFT")
    by_seed = [means.loc[seed].to_numpy() for seed in e.seeds]

    def ratio(table: np.ndarray) -> float:
        return float(table[:, 1].mean() / table[:, 0].mean())

    if len(by_seed) > 1:
        log = over_seeds([np.log(ratio(t)) for t in by_seed])
        times = Estimate(*np.exp([log.value, log.low, log.high]).tolist(), log.n, "seeds")
    else:
        times = bootstrap(len(by_seed[0]), lambda picks: ratio(by_seed[0][picks]), "matrices")
    sentence = (
        f"With equal updates and learning rate SFT turns the leading directions {times.text('.2f')} times as far as RL."
    )
    return Finding(decide(times.low > 1, times.high < 1), times, None, "angle through SFT / angle through RL", sentence)


CLAIM = Rule("C9", __doc__, "times", rule)
