"""The claims C1 to C9 of arXiv:2509.12235 as tests on a run's measurements.

Every rule stands in the docstring of its claim's function; all read intervals at 95 %. `supported` and
`not supported` need an interval that lies wholly on one side of the bar; anything else is `inconclusive`.
In `peak`, the OOD peak of SFT; `end`, its last checkpoint; `lost`, what OOD accuracy fell between them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import skew

from oodlib.runs import Run
from oodlib.stats import Estimate, Scores, bootstrap, estimate, over_seeds

VERDICTS = ("supported", "not supported", "inconclusive")
PAPER = json.loads((Path(__file__).parent / "data" / "paper_figures.json").read_text())

EARLY = 0.15  # "early" is within this share of the SFT steps
FLAT = 0.05  # a relative rise of a loss up to this is flat
FORMAT_DONE = 0.9  # share of the malformed answers that must be gone by the peak
SMALL = 0.10  # a recovered share up to this is nothing
MOST = 0.5  # a recovered share above this is most of it
CONTROLS = ("sft_continued", "rejection_sampling")


@dataclass(frozen=True)
class Claim:
    """A line of the scorecard. `paper` is the paper's number for the same quantity, None where it has none."""

    claim: str
    verdict: str
    estimate: float
    ci_low: float
    ci_high: float
    n: int
    paper: float | None
    title: str
    quantity: str
    sentence: str


class Evidence:
    """A run's tables, arranged for the claims: scores a seed, the steps, and where the peak is."""

    def __init__(self, hands: pd.DataFrame, rollouts: pd.DataFrame, rotation: pd.DataFrame):
        self.hands, self.rollouts, self.rotation = hands, rollouts, rotation
        self.seeds = sorted(hands["seed"].unique())
        sft = hands[hands["stage"] == "sft"]
        self.steps = sorted(int(s) for s in sft["step"].unique())
        self.end = self.steps[-1]
        rl = hands[hands["arm"] == "rl"]
        self.rl_from = sorted(int(s) for s in rl["from_step"].unique())
        self.rl_steps = int(rl["step"].max()) if len(rl) else 0
        self._cache: dict[tuple[str, str], list[Scores]] = {}
        self.peaks = [max(self.steps, key=lambda t, s=s: (s[SFT(t)], -t)) for s in self.scores("ood")]

    @classmethod
    def of(cls, run: Run) -> Evidence:
        return cls(run.table("hands"), run.table("rollouts"), run.table("rotation"))

    def scores(self, split: str, column: str = "correct") -> list[Scores]:
        """Per seed: was the answer `correct`, was it `malformed`, or the `loss` of a right answer."""
        if (split, column) not in self._cache:
            mine = self.hands[self.hands["split"] == split]
            value = mine["loss"] if column == "loss" else (mine["outcome"] == column).astype(float)
            keys = ["stage", "arm", "from_step", "step"]
            tables = mine.assign(value=value).astype(dict.fromkeys(("stage", "arm", "problem"), str))
            tables = tables[tables["value"].notna()]
            self._cache[split, column] = [
                Scores(tables[tables["seed"] == s].pivot(index="problem", columns=keys, values="value"))
                for s in self.seeds
            ]
        return self._cache[split, column]

    def measure(self, statistic: Callable[[Scores, int], float], split="ood", column="correct") -> Estimate:
        """An estimate of `statistic(scores of a seed, peak of that seed)`."""
        peaks = {id(s.table): p for s, p in zip(self.scores(split, column), self.peaks, strict=True)}
        return estimate(self.scores(split, column), lambda s: statistic(s, peaks[id(s.table)]))

    def after(self, peak: int) -> list[int]:
        """The RL starts at which OOD accuracy has been lost: all after the peak."""
        return [t for t in self.rl_from if t > peak]

    def inside(self, peak: int) -> list[int]:
        return [t for t in self.rl_from if peak < t < self.end]

    def outside(self, peak: int) -> list[int]:
        return [t for t in self.rl_from if not peak < t < self.end]

    def arm(self, name: str, start: int) -> tuple[str, str, int, int]:
        return ("rl", name, start, self.rl_steps)

    def edit(self, name: str, peak: int) -> tuple[str, str, int, int]:
        return ("surgery", name, peak, self.end)

    def edit_names(self, start: str) -> list[str]:
        arms = self.hands.loc[self.hands["stage"] == "surgery", "arm"].astype(str).unique()
        return [a for a in arms if a.startswith(start)]


def SFT(step: int) -> tuple[str, str, int, int]:
    """The key of an SFT checkpoint's evaluation."""
    return ("sft", "sft", 0, step)


def decide(supported: bool, refuted: bool) -> str:
    """The verdict; a claim that is both (a part of it holds, another fails) is not supported."""
    return "not supported" if refuted else "supported" if supported else "inconclusive"


def c1(e: Evidence) -> Claim:
    """OOD accuracy peaks early in SFT, then falls while ID accuracy rises.

    Estimate: OOD(peak) - OOD(end), the peak chosen on one half of the problems and measured on the other, so
    that the best of many noisy numbers is not taken at its face. Supported: above 0, ID(end) - ID(peak) above
    0, and every seed's peak within the first 15 % of the steps. Not supported: either of the two below 0.
    """

    def fall(scores: Scores, _: int) -> float:
        halves = scores.halves()
        pairs = (halves, halves[::-1])
        peaks = [max(e.steps, key=lambda t, a=a: a[SFT(t)]) for a, _ in pairs]
        return float(np.mean([b[SFT(t)] - b[SFT(e.end)] for (_, b), t in zip(pairs, peaks, strict=True)]))

    found = e.measure(fall)
    rise = e.measure(lambda s, p: s[SFT(e.end)] - s[SFT(p)], split="id")
    early = all(0 < p <= EARLY * e.end for p in e.peaks)
    verdict = decide(found.low > 0 and rise.low > 0 and early, found.high < 0 or rise.high < 0)
    paper = PAPER["stages"]["llama-3.2-11b"]["ood"]
    steps = ", ".join(map(str, sorted(set(e.peaks))))
    text = (
        f"OOD accuracy is highest at step {steps} of {e.end} and falls by {points(found)} points to the end, "
        f"while ID accuracy changes by {points(rise)} points."
    )
    return _claim("C1", verdict, found, (paper["sft_peak"] - paper["sft_end"]) / 100, "OOD(peak) - OOD(end)", text)


def c2(e: Evidence) -> Claim:
    """No loss shows where the OOD peak is: the test losses keep falling, or stay flat, after it.

    Estimate: the larger of the relative rises of the ID and the OOD test loss from the peak to the end.
    Supported: both below 5 %. Not supported: either above 5 %.
    """
    rises = {split: e.measure(lambda s, p: s[SFT(e.end)] / s[SFT(p)] - 1, split, "loss") for split in ("id", "ood")}
    split = max(rises, key=lambda s: rises[s].value)
    verdict = decide(all(r.high < FLAT for r in rises.values()), any(r.low > FLAT for r in rises.values()))
    text = (
        f"From the OOD peak to the end the ID test loss changes by {percent(rises['id'])} and the OOD test loss "
        f"by {percent(rises['ood'])}: "
        + ("neither shows the peak." if verdict == "supported" else f"the {split.upper()} loss rises after it.")
        if verdict != "inconclusive"
        else "The test losses change too little, or too unevenly, after the OOD peak to tell."
    )
    return _claim("C2", verdict, rises[split], None, "largest relative rise of a test loss after the peak", text)


def c3(e: Evidence) -> Claim:
    """The first steps of SFT mostly teach the output format.

    Estimate: the share of OOD answers that are malformed at step 0, less that at the OOD peak. Supported:
    above 90 % of the share at step 0 (and that at least one half). Not supported: below it.
    """
    start = np.mean([s[SFT(0)] for s in e.scores("ood", "malformed")])
    found = e.measure(lambda s, p: s[SFT(0)] - s[SFT(p)], column="malformed")
    bar = FORMAT_DONE * start
    verdict = decide(found.low > bar and start >= 0.5, found.high < bar or start < 0.5)
    paper = PAPER["format_error_percent"]["llama-3.2-11b"]
    text = (
        f"Before SFT {start:.0%} of the OOD answers are malformed; by the OOD peak that falls by {points(found)} "
        "points."
    )
    quantity = "malformed(step 0) - malformed(peak)"
    return _claim("C3", verdict, found, (paper[0] - paper[-1]) / 100, quantity, text)


def c4(e: Evidence) -> Claim:
    """RL after SFT restores lost OOD accuracy, and does not exceed the early SFT peak.

    Over the starts after the peak, OOD accuracy, each interval on its own. Supported: RL above its start, above
    BOTH controls (same updates, samples, learning rate), and not above the peak. Not supported: RL below its
    start, below a control, or above the peak. Estimate: RL less the better control.
    """

    def versus(other: Callable[[int, int], tuple]) -> Estimate:
        def gap(s: Scores, p: int) -> float:
            starts = e.after(p)
            return float(np.mean([s[e.arm("rl", t)] - s[other(t, p)] for t in starts])) if starts else np.nan

        return e.measure(gap)

    gained = versus(lambda t, p: SFT(t))
    over_peak = versus(lambda t, p: SFT(p))
    gaps = {c: versus(lambda t, p, c=c: e.arm(c, t)) for c in CONTROLS}
    best = min(gaps, key=lambda c: gaps[c].value)
    verdict = decide(
        gained.low > 0 and all(g.low > 0 for g in gaps.values()) and not over_peak.low > 0,
        gained.high < 0 or any(g.high < 0 for g in gaps.values()) or over_peak.low > 0,
    )
    names = {"sft_continued": "continuing SFT", "rejection_sampling": "rejection sampling"}
    text = (
        f"From checkpoints after the peak RL changes OOD accuracy by {points(gained)} points; against "
        + " and ".join(f"{names[c]} it is {points(g)}" for c, g in gaps.items())
        + f"; against the SFT peak {points(over_peak)}."
    )
    return _claim("C4", verdict, gaps[best], None, "OOD(RL) - OOD(better control), starts after the peak", text)


def c5(e: Evidence) -> Claim:
    """Restoration has a window: RL from too early or too late a checkpoint does not help.

    Inside the window: starts between peak and end. Outside: the others. Estimate: the mean change of OOD
    accuracy through RL inside, less that outside. Supported: above 0, the change inside above 0, that outside
    not above 0. Not supported: estimate below 0, change inside below 0, or change outside above 0.
    """

    def change(s: Scores, starts: list[int]) -> float:
        return float(np.mean([s[e.arm("rl", t)] - s[SFT(t)] for t in starts])) if starts else np.nan

    inside = e.measure(lambda s, p: change(s, e.inside(p)))
    outside = e.measure(lambda s, p: change(s, e.outside(p)))
    found = e.measure(lambda s, p: change(s, e.inside(p)) - change(s, e.outside(p)))
    verdict = decide(
        found.low > 0 and inside.low > 0 and not outside.low > 0,
        found.high < 0 or inside.high < 0 or outside.low > 0,
    )
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    low, high = PAPER["rl_window_llama_steps"]
    gains = [
        (low <= t <= high, r - s) for t, s, r in zip(*(curve[k] for k in ("step", "sft", "rl_from_step")), strict=True)
    ]
    paper = [np.mean([g for i, g in gains if i is within]) / 100 for within in (True, False)]
    text = (
        f"RL changes OOD accuracy by {points(inside)} points from starts between peak and end, and by "
        f"{points(outside)} from the others."
    )
    quantity = "OOD change through RL, inside - outside the window"
    return _claim("C5", verdict, found, float(paper[0] - paper[1]), quantity, text)


def c6(e: Evidence) -> Claim:
    """Inside the window RL's advantages are spread flat; outside they are skewed.

    Estimate: the mean absolute skewness of the advantages outside the window of C5, less that inside.
    Supported: above 0. Not supported: below 0. One seed: bootstrap over groups (prompts).
    """

    def contrast(groups: dict[int, np.ndarray], peak: int, pick=lambda g: g) -> float:
        skews = {t: abs(float(skew(pick(g).ravel()))) for t, g in groups.items()}
        inside, outside = e.inside(peak), e.outside(peak)
        if not inside or not outside:
            return np.nan
        return float(np.mean([skews[t] for t in outside]) - np.mean([skews[t] for t in inside]))

    by_seed = [_advantage_groups(e, seed) for seed in e.seeds]
    if len(by_seed) > 1:
        found = over_seeds([contrast(g, p) for g, p in zip(by_seed, e.peaks, strict=True)])
    else:
        (groups,) = by_seed
        n = min(len(g) for g in groups.values())
        found = bootstrap(n, lambda picks: contrast(groups, e.peaks[0], lambda g: g[picks]), "groups")
    verdict = decide(found.low > 0, found.high < 0)
    text = (
        f"The advantages' absolute skewness is {found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] larger for "
        "RL from outside the window than from inside."
    )
    return _claim("C6", verdict, found, None, "|skewness| of advantages, outside - inside", text)


def c7(e: Evidence) -> Claim:
    """Singular values hardly change, and putting the peak's values back does not change OOD accuracy.

    Estimate: the share of the lost OOD accuracy that restored values bring back, at the k where that is
    largest in size. Supported: within 10 % either way, and a mean relative change of the values from base to
    end below 5 %. Not supported: wholly beyond 10 %.
    """
    found = _largest([e.measure(_recovered(e, name)) for name in e.edit_names("values")])
    mine = e.rotation[(e.rotation["metric"] == "value_change") & (e.rotation["arm"].astype(str) == "sft")]
    moved = float(mine[(mine["from_step"] == 0) & (mine["step"] == e.end)]["value"].mean())
    verdict = decide(
        found.low > -SMALL and found.high < SMALL and moved < FLAT, found.low > SMALL or found.high < -SMALL
    )
    llama, stage = (
        PAPER["restore_singular_values_ood"]["llama-3.2-11b"],
        PAPER["stages"]["llama-3.2-11b"]["ood"],
    )
    change = max((o - llama["baseline"] for o in llama["ood"]), key=abs)
    text = (
        f"Singular values change by {moved:.1%} on average through SFT; putting the peak's values back recovers "
        f"{percent(found)} of the lost OOD accuracy."
    )
    paper = change / (stage["sft_peak"] - stage["sft_moderate"])
    return _claim("C7", verdict, found, paper, "share of lost OOD recovered by singular values", text)


def c8(e: Evidence) -> Claim:
    """Singular vectors rotate, and putting the peak's vectors back restores OOD accuracy.

    Estimate: the share of the lost OOD accuracy that all restored vectors bring back. Supported: above one
    half, and more than either null brings (a random turn by the same principal angles; noise of the same size).
    Not supported: below one half, or less than a null.
    """
    found = e.measure(_recovered(e, "vectors top 1"))
    top = _recovered(e, "vectors top 1")
    nulls = {kind: e.edit_names(f"{kind} top 1 ") for kind in ("random", "noise")}
    gaps = [
        e.measure(lambda s, p, names=names: top(s, p) - np.mean([_recovered(e, name)(s, p) for name in names]))
        for names in nulls.values()
        if names
    ]
    verdict = decide(
        found.low > MOST and all(g.low > 0 for g in gaps), found.high < MOST or any(g.high < 0 for g in gaps)
    )
    quarter = e.edit_names("vectors top 0.25")
    part = f" (the leading quarter {percent(e.measure(_recovered(e, quarter[0])))})" if quarter else ""
    text = (
        f"Putting the peak's singular vectors back recovers {percent(found)} of the lost OOD accuracy{part}; that is "
        + " and ".join(map(percent, gaps))
        + " more than a random turn by the same angles and noise of the same size do."
    )
    paper = float(np.mean(PAPER["restore_singular_vectors"]["ood_recovered_share"]))
    return _claim("C8", verdict, found, paper, "share of lost OOD recovered by singular vectors", text)


def c9(e: Evidence) -> Claim:
    """SFT rotates hard, RL softly.

    Estimate: the mean principal angle that continued SFT makes, over RL's, from the same checkpoints with the
    same updates and learning rate. Supported: above 1. Not supported: below 1. One seed: bootstrap over
    weight matrices; several: on the logarithm of the ratio.
    """
    angles = e.rotation[e.rotation["metric"].astype(str).str.startswith("angle")]
    angles = angles.assign(arm=angles["arm"].astype(str))
    keys = ["seed", "layer", "module", "metric", "arm"]
    means = angles[angles["arm"].isin(["rl", "sft_continued"])].astype({"module": str, "metric": str})
    means = means.groupby(keys)["value"].mean().unstack("arm")
    by_seed = [means.loc[seed].to_numpy() for seed in e.seeds]  # columns rl, sft_continued

    def ratio(table: np.ndarray) -> float:
        return float(table[:, 1].mean() / table[:, 0].mean())

    if len(by_seed) > 1:
        log = over_seeds([np.log(ratio(t)) for t in by_seed])
        found = Estimate(*np.exp([log.value, log.low, log.high]).tolist(), log.n, "seeds")
    else:
        found = bootstrap(len(by_seed[0]), lambda picks: ratio(by_seed[0][picks]), "matrices")
    verdict = decide(found.low > 1, found.high < 1)
    text = (
        f"With equal updates and learning rate SFT turns the leading directions {found.value:.2f} "
        f"[{found.low:.2f}, {found.high:.2f}] times as far as RL."
    )
    return _claim("C9", verdict, found, None, "angle through SFT / angle through RL", text)


RULES = {"C1": c1, "C2": c2, "C3": c3, "C4": c4, "C5": c5, "C6": c6, "C7": c7, "C8": c8, "C9": c9}


def scorecard(evidence: Evidence) -> list[Claim]:
    """Every claim with its verdict."""
    return [rule(evidence) for rule in RULES.values()]


def as_json(claims: list[Claim]) -> str:
    """The scorecard as JSON text; numbers that are not there (NaN) as null."""
    rows = [{k: None if v is not None and v != v else v for k, v in asdict(c).items()} for c in claims]
    return json.dumps(rows, indent=1) + "\n"


def interval(c: Claim) -> str:
    """A claim's estimate with its interval, as text."""
    return f"{c.estimate:+.3f} [{c.ci_low:+.3f}, {c.ci_high:+.3f}]"


def as_markdown(claims: list[Claim]) -> str:
    """The scorecard as a Markdown table."""
    lines = ["| | claim | measured | estimate [95 %] | paper | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for c in claims:
        paper = "" if c.paper is None else f"{c.paper:+.3f}"
        lines.append(f"| {c.claim} | {c.title} | {c.quantity} | {interval(c)} | {paper} | **{c.verdict}** |")
    return "\n".join(lines) + "\n"


def points(x: Estimate) -> str:
    """A difference of accuracies in percentage points."""
    if not np.isfinite(x.value):
        return "an unknown number of"
    return f"{100 * x.value:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def percent(x: Estimate) -> str:
    return f"{100 * x.value:+.0f} % [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"


def _recovered(e: Evidence, name: str) -> Callable[[Scores, int], float]:
    def share(s: Scores, p: int) -> float:
        lost = s[SFT(p)] - s[SFT(e.end)]
        return (s[e.edit(name, p)] - s[SFT(e.end)]) / lost if lost else np.nan

    return share


def _largest(found: list[Estimate]) -> Estimate:
    return max(found, key=lambda x: abs(x.value))


def _advantage_groups(e: Evidence, seed: int) -> dict[int, np.ndarray]:
    """Per start, the advantages as [groups, samples a group]."""
    mine = e.rollouts[e.rollouts["seed"] == seed]
    groups = {}
    for start, frame in mine.groupby("from_step"):
        size = int(frame.groupby("group").size().mode().iloc[0])
        groups[int(start)] = frame["advantage"].to_numpy()[: len(frame) // size * size].reshape(-1, size)
    return groups


def _claim(name: str, verdict: str, x: Estimate, paper: float | None, quantity: str, sentence: str) -> Claim:
    if not np.isfinite(x.value):
        sentence = "This run does not tell: it has no RL start on the side, or in the arm, that the rule needs."
    title = RULES[name].__doc__.strip().splitlines()[0].rstrip(".")
    return Claim(name, verdict, x.value, x.low, x.high, x.n, paper, title, quantity, sentence)
