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
from scipy.stats import skew

from oodlib.analysis.evidence import SFT, Evidence, Missing, Place, advantage_groups, recovered, training_rise
from oodlib.analysis.stats import Estimate, Scores, bootstrap, over_seeds
from oodlib.stages import NULLS

VERDICTS = ("supported", "not supported", "inconclusive")
PAPER = json.loads((Path(__file__).parent / "paper_figures.json").read_text(encoding="utf-8"))

EARLY = 0.15  # "early" is within this share of the SFT steps
FLAT = 0.05  # a relative change up to this is none: of a loss, of a singular value
FORMAT_DONE = 0.9  # share of the malformed answers that must be gone by the peak
SMALL = 0.10  # a recovered share up to this is nothing
MOST = 0.5  # a recovered share above this is most of it
MARGIN = 0.05  # a gain in accuracy up to this is no help; RL up to this above the peak does not exceed it
CONTROLS = ("sft_continued", "rejection_sampling")
UNITS = {"C1": "points", "C2": "%", "C3": "points", "C4": "points", "C5": "points", "C6": "", "C7": "%", "C8": "%"}
UNITS |= {"C9": "times"}
FORMS = {"points": (100, "+.1f"), "%": (100, "+.0f"), "": (1, "+.2f"), "times": (1, ".2f")}  # factor and digits


@dataclass(frozen=True)
class Claim:
    """A line of the scorecard. `paper` is the paper's number for the same quantity, None where it has none.

    Numbers are shares and ratios as they are; `unit` is the one that they are shown in (`in_unit`).
    """

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
    unit: str


def decide(supported: bool, refuted: bool) -> str:
    """The verdict; a claim that is both (a part of it holds, another fails) is not supported."""
    return "not supported" if refuted else "supported" if supported else "inconclusive"


def c1(e: Evidence) -> Claim:
    """OOD accuracy peaks early in SFT, then falls while ID accuracy rises.

    Estimate: OOD(peak) - OOD(end), the peak chosen on one half of the problems and measured on the other, so
    that the best of many noisy numbers is not taken at its face. Supported: above 0, ID(end) - ID(peak) above
    0, and every seed's peak within the first 15 % of the steps. Not supported: either of the two not above 0
    with its whole interval, or no seed's peak that early.
    """

    def fall(scores: Scores, _: Place) -> float:
        halves = scores.halves()
        pairs = (halves, halves[::-1])
        peaks = [max(e.steps, key=lambda t, a=a: a[SFT(t)]) for a, _ in pairs]
        return float(np.mean([b[SFT(t)] - b[SFT(e.end)] for (_, b), t in zip(pairs, peaks, strict=True)]))

    found = e.measure(fall)
    rise = e.measure(lambda s, at: s[SFT(e.end)] - s[SFT(at.peak)], split="id")
    early = [0 < p <= EARLY * e.end for p in e.peaks]
    verdict = decide(found.low > 0 and rise.low > 0 and all(early), found.high <= 0 or rise.high <= 0 or not any(early))
    paper = PAPER["stages"]["llama-3.2-11b"]["ood"]
    steps = ", ".join(map(str, sorted(set(e.peaks))))
    text = (
        f"OOD accuracy is highest at step {steps} of {e.end} and is {points(found)} points above that at the end, "
        f"while ID accuracy changes by {points(rise)} points.{_dip(e)}"
    )
    return _claim("C1", verdict, found, (paper["sft_peak"] - paper["sft_end"]) / 100, "OOD(peak) - OOD(end)", text)


def _dip(e: Evidence) -> str:
    """Whether ID accuracy falls as well just after the OOD peak, in words; means over seeds."""
    curve = {t: np.mean([s[SFT(t)] for s in e.scores("id")]) for t in e.steps}
    lowest = min((t for t in e.steps if t >= max(e.peaks)), key=curve.__getitem__)
    dip = e.measure(lambda s, at: s[SFT(lowest)] - s[SFT(at.peak)], split="id")
    if not dip.high < 0:
        return ""
    return (
        f" ID accuracy falls too at first, to {curve[lowest]:.1%} at step {lowest} ({points(dip)} points): not all of "
        "the early fall is forgetting of the rule."
    )


def c2(e: Evidence) -> Claim:
    """No loss shows where the OOD peak is: all keep falling, or stay flat, after it.

    Estimate: the larger of the relative changes of the ID and the OOD test loss from the peak to the end.
    Supported: both below +5 %, and so the training loss (mean of the steps within a third of the
    peak's, and of the last 5 %; no interval).
    Not supported: one above it.
    """
    rises = {
        split: e.measure(lambda s, at: s[SFT(e.end)] / s[SFT(at.peak)] - 1, split, "loss") for split in ("id", "ood")
    }
    split = max(rises, key=lambda s: rises[s].value)
    train = training_rise(e)
    verdict = decide(
        all(r.high < FLAT for r in rises.values()) and train < FLAT,
        any(r.low > FLAT for r in rises.values()) or train > FLAT,
    )
    ends = {"supported": "none of them shows the peak", "not supported": f"the {split.upper()} loss shows it"}
    text = (
        f"From the OOD peak to the end the ID test loss changes by {percent(rises['id'])}, the OOD test loss by "
        f"{percent(rises['ood'])} and the training loss by {100 * train:+.0f} %: "
        f"{ends.get(verdict, 'this does not tell')}."
    )
    return _claim("C2", verdict, rises[split], None, "largest relative change of a test loss after the peak", text)


def c3(e: Evidence) -> Claim:
    """The first steps of SFT mostly teach the output format.

    Estimate: the share of OOD answers that are malformed at step 0, less that at the OOD peak. Supported:
    above 90 % of the share at step 0 (and that at least one half). Not supported: below it. The tiny base model
    was made to break the format, as real ones do: here the claim is about how fast SFT mends that.
    """
    start = np.mean([s[SFT(0)] for s in e.scores("ood", "malformed")])
    found = e.measure(lambda s, at: s[SFT(0)] - s[SFT(at.peak)], column="malformed")
    bar = FORMAT_DONE * start
    verdict = decide(found.low > bar and start >= 0.5, found.high < bar or start < 0.5)
    paper = PAPER["format_error_percent"]["llama-3.2-11b"]
    text = (
        f"Before SFT {start:.0%} of the OOD answers are malformed; by the OOD peak the share has fallen by "
        f"{points(found)} points."
    )
    quantity = "malformed(step 0) - malformed(peak)"
    return _claim("C3", verdict, found, (paper[0] - paper[-1]) / 100, quantity, text)


def c4(e: Evidence) -> Claim:
    """RL after SFT restores lost OOD accuracy, and does not exceed the early SFT peak.

    Over the starts at which at least a quarter of the fall has happened. Supported: RL brings back more than
    10 % of what is lost there, ends above BOTH controls (same updates, samples, learning rate), and less than
    5 points above the peak. Not supported: RL ends below its start, not above a control, or above the peak, each
    with the whole interval. Estimate: RL less the better control.
    """

    def versus(other: Callable[[int, int], tuple], share: float = 0.0) -> Estimate:
        def gap(s: Scores, at: Place) -> float:
            if not at.lost:
                raise Missing("no RL start after the OOD peak at which accuracy is lost")
            bars = [share * (s[SFT(at.peak)] - s[SFT(t)]) for t in at.lost]
            gains = [s[e.arm("rl", t)] - s[other(t, at.peak)] for t in at.lost]
            return float(np.mean(gains) - np.mean(bars))

        return e.measure(gap)

    gained, enough = versus(lambda t, p: SFT(t)), versus(lambda t, p: SFT(t), SMALL)
    over_peak = versus(lambda t, p: SFT(p))
    gaps = {c: versus(lambda t, p, c=c: e.arm(c, t)) for c in CONTROLS}
    best = min(gaps, key=lambda c: gaps[c].value)
    verdict = decide(
        enough.low > 0 and all(g.low > 0 for g in gaps.values()) and over_peak.high < MARGIN,
        gained.high <= 0 or any(g.high <= 0 for g in gaps.values()) or over_peak.low > 0,
    )
    names = {"sft_continued": "continuing SFT", "rejection_sampling": "rejection sampling"}
    text = (
        f"From checkpoints that have lost OOD accuracy RL changes it by {points(gained)} points; against "
        + " and ".join(f"{names[c]} it ends {points(g)}" for c, g in gaps.items())
        + f"; against the SFT peak {points(over_peak)}."
    )
    return _claim("C4", verdict, gaps[best], None, "OOD(RL) - OOD(better control), starts that lost a quarter", text)


def c5(e: Evidence) -> Claim:
    """Restoration has a window: RL from too early or too late a checkpoint does not help.

    Inside the window: starts with at least a quarter of the fall behind them, before the end. Early: those before.
    Late: the end. Estimate: the mean change of OOD accuracy through RL inside, less that outside. Supported: the
    change inside above 0, above that of early and of late starts, and these below 5 points. Not supported: the
    change inside not above 0, or that of early or of late starts above 0, or above that inside.
    """

    def change(s: Scores, starts: list[int], which: str) -> float:
        if not starts:
            raise Missing(f"no {which} RL start")
        return float(np.mean([s[e.arm("rl", t)] - s[SFT(t)] for t in starts]))

    sets = {
        "inside": lambda at: at.inside,
        "early": lambda at: at.early,
        "late": lambda at: at.late,
        "outside": lambda at: at.early + at.late,
    }
    gain = {k: e.measure(lambda s, at, k=k: change(s, sets[k](at), k)) for k in sets}
    gaps = {
        k: e.measure(lambda s, at, k=k: change(s, at.inside, "inside") - change(s, sets[k](at), k))
        for k in ("early", "late", "outside")
    }
    ends = ("early", "late")
    verdict = decide(
        gain["inside"].low > 0 and all(gaps[k].low > 0 and gain[k].high < MARGIN for k in ends),
        gain["inside"].high <= 0 or any(gain[k].low > 0 or gaps[k].high <= 0 for k in ends),
    )
    curve = PAPER["llama_3_2_11b_ood_by_sft_step"]
    low, high = PAPER["rl_window_llama_steps"]
    columns = (curve[k] for k in ("step", "sft", "rl_from_step"))
    gains = [(low <= t <= high, r - s) for t, s, r in zip(*columns, strict=True)]
    paper = [np.mean([g for i, g in gains if i is within]) / 100 for within in (True, False)]
    text = (
        f"RL changes OOD accuracy by {points(gain['early'])} points from early starts, {points(gain['inside'])} from "
        f"starts inside the window and {points(gain['late'])} from the end."
    )
    quantity = "OOD change through RL, inside - outside the window"
    return _claim("C5", verdict, gaps["outside"], float(paper[0] - paper[1]), quantity, text)


def c6(e: Evidence) -> Claim:
    """Inside the window RL's advantages are spread flat; outside they are skewed.

    Estimate: the mean absolute skewness of the advantages outside the window of C5, less that inside.
    Supported: above 0. Not supported: below 0. One seed: bootstrap over groups (prompts).
    """

    def contrast(groups: dict[int, np.ndarray], at: Place, pick=lambda g: g) -> float:
        skews = {t: abs(float(skew(pick(g).ravel()))) for t, g in groups.items()}
        outside = [t for t in at.early + at.late if t in skews]
        if not at.inside or not outside:
            raise Missing("no RL start on one side of the window")
        return float(np.mean([skews[t] for t in outside]) - np.mean([skews[t] for t in at.inside]))

    by_seed = [advantage_groups(e, seed) for seed in e.seeds]
    if len(by_seed) > 1:
        found = over_seeds([contrast(g, at) for g, at in zip(by_seed, e.places, strict=True)])
    else:
        (groups,) = by_seed
        n = min((len(g) for g in groups.values()), default=0)
        found = bootstrap(n, lambda picks: contrast(groups, e.places[0], lambda g: g[picks]), "groups")
    verdict = decide(found.low > 0, found.high < 0)
    text = (
        f"The absolute skewness of the advantages outside the window, less that inside, is {found.value:+.2f} "
        f"[{found.low:+.2f}, {found.high:+.2f}]. (The window is set by the fall of OOD accuracy, not by any healing.)"
    )
    return _claim("C6", verdict, found, None, "|skewness| of advantages, outside - inside", text)


def c7(e: Evidence) -> Claim:
    """Singular values hardly change, and restoring them does not change OOD accuracy.

    Estimate: the share of the lost OOD accuracy that restored values bring back, at the edit where that is
    largest in size. Supported: within 10 % either way for every edit, and a mean relative change of the values
    below 5 % both from base to end and through RL. Not supported: an edit wholly beyond 10 %, or a larger change.
    """
    found = [e.measure(recovered(e, name)) for name in e.edit_names("values")]
    changes = e.rotation[e.rotation["metric"].astype(str) == "value_change"].astype({"arm": str})
    through = {
        "SFT": changes[(changes["arm"] == "sft") & (changes["from_step"] == 0) & (changes["step"] == e.end)],
        "RL": changes[changes["arm"] == "rl"],
    }
    moved = {name: float(rows["value"].mean()) for name, rows in through.items()}
    if not found or any(np.isnan(m) for m in moved.values()):
        raise Missing("no edit of singular values, or no spectra")
    verdict = decide(
        all(x.low > -SMALL and x.high < SMALL for x in found) and all(m < FLAT for m in moved.values()),
        any(x.low > SMALL or x.high < -SMALL for x in found) or any(m > FLAT for m in moved.values()),
    )
    largest = max(found, key=lambda x: abs(x.value))
    llama, stage = PAPER["restore_singular_values_ood"]["llama-3.2-11b"], PAPER["stages"]["llama-3.2-11b"]["ood"]
    change = max((o - llama["baseline"] for o in llama["ood"]), key=abs)
    text = (
        f"Singular values change by {moved['SFT']:.1%} on average through SFT and {moved['RL']:.1%} through RL; "
        f"putting the peak's values back recovers {percent(largest)} of the lost OOD accuracy at most."
    )
    paper = change / (stage["sft_peak"] - stage["sft_moderate"])
    return _claim("C7", verdict, largest, paper, "share of lost OOD recovered by singular values", text)


def c8(e: Evidence) -> Claim:
    """Singular vectors rotate, and restoring them restores OOD accuracy.

    Estimate: the share of the lost OOD accuracy that the peak's singular vectors bring back in every matrix, with
    the end's values. That is nearly the donor itself wherever values hardly change (C7), so three nulls stand beside
    it: a random turn by the same angles, the same turn with random signs, which has both its angles and its size, and
    noise of the same size. Supported: above one half, and above every null. Not supported: below one half, or not
    above a null. The 70 to 80 % of the paper's earlier version (arXiv:2508.16546) are for the leading 20 % of the
    directions or the first quarter of the layers, so they do not stand beside this estimate; the sentence gives what a
    quarter brings here.
    """
    name = "every matrix" if e.edit_names("vectors every") else "top 1"
    top = recovered(e, f"vectors {name}")
    found = e.measure(top)
    nulls = {kind: e.edit_names(f"{kind} {name} ") for kind in NULLS}
    if not all(nulls.values()):
        raise Missing("no null edits (surgery_draws is 0)")
    alone = {
        kind: lambda s, at, mine=mine: np.mean([recovered(e, m)(s, at) for m in mine]) for kind, mine in nulls.items()
    }
    gaps = {kind: e.measure(lambda s, at, null=null: top(s, at) - null(s, at)) for kind, null in alone.items()}
    verdict = decide(
        found.low > MOST and all(g.low > 0 for g in gaps.values()),
        found.high < MOST or any(g.high <= 0 for g in gaps.values()),
    )
    shares = PAPER["restore_singular_vectors"]["ood_recovered_share"]
    first = f"vectors top 1 layers {max(1, round((e.rotation['layer'].max() + 1) / 4))}"
    parts = {
        "the projections alone": "vectors top 1" if name == "every matrix" else "no such edit",
        "the leading quarter of their directions": "vectors top 0.25",
        "the first quarter of the layers": first,
    }
    brought = {part: e.measure(recovered(e, edit)) for part, edit in parts.items() if edit in e.edit_names(edit)}
    where = "every matrix, embeddings included," if name == "every matrix" else "every projection"
    text = (
        f"Putting the peak's singular vectors back in {where} recovers {percent(found)} of the lost OOD accuracy; a "
        f"random turn by the same angles {percent(e.measure(alone['random']))}, the same turn with random signs "
        f"{percent(e.measure(alone['signs']))}, noise of the same size {percent(e.measure(alone['noise']))}."
    )
    if brought:
        text += (
            " But all vectors make nearly the peak itself again. Parts recover less: "
            + ", ".join(f"{part} {percent(x)}" for part, x in brought.items())
            + "; the paper's earlier version (arXiv:2508.16546) has "
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % for parts such as the last two."
        )
    return _claim("C8", verdict, found, None, "share of lost OOD recovered by all singular vectors", text)


def c9(e: Evidence) -> Claim:
    """SFT rotates hard, RL softly.

    Estimate: the mean principal angle that continued SFT makes, over RL's, from the same checkpoints with the
    same updates and learning rate. Supported: above 1. Not supported: below 1. One seed: bootstrap over
    weight matrices; several: on the logarithm of the ratio.
    """
    angles = e.rotation[e.rotation["metric"].astype(str).str.startswith("angle")]
    means = angles.astype({"arm": str, "module": str, "metric": str})
    means = means[means["arm"].isin(["rl", "sft_continued"])]
    means = means.groupby(["seed", "layer", "module", "metric", "arm"])["value"].mean().unstack("arm")
    if list(means.columns) != ["rl", "sft_continued"]:
        raise Missing("no angles of RL and of continued SFT")
    by_seed = [means.loc[seed].to_numpy() for seed in e.seeds]

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


def judge(name: str, evidence: Evidence) -> Claim:
    """One claim; where the run lacks what its rule needs, `inconclusive` with a sentence that says so."""
    try:
        return RULES[name](evidence)
    except Missing as error:
        nothing = Estimate(np.nan, np.nan, np.nan, 0, "nothing")
        return _claim(name, "inconclusive", nothing, None, "", f"This run does not tell: {error.args[0]}.")


def scorecard(evidence: Evidence) -> list[Claim]:
    """Every claim with its verdict."""
    return [judge(name, evidence) for name in RULES]


def as_json(claims: list[Claim]) -> str:
    """The scorecard as JSON text; numbers that are not there (NaN) as null."""
    rows = [{k: None if v is not None and v != v else v for k, v in asdict(c).items()} for c in claims]
    return json.dumps(rows, indent=1) + "\n"


def sentence(evidence: Evidence, *names: str) -> str:
    """Claims in words, as Markdown: verdicts first, then what was measured."""
    found = [judge(name, evidence) for name in names]
    verdicts = "; ".join(f"{c.claim}: {c.verdict}" for c in found)
    return f"**What was seen ({verdicts}).** " + " ".join(c.sentence for c in found)


def in_unit(unit: str, value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A number in its unit: with its interval "+29.4 [+25.7, +33.0] points", by itself "+10.6"; "" for none."""
    if value is None or value != value:
        return ""
    factor, form = FORMS[unit]
    value, *ends = (f"{factor * x:{form}}" for x in (value, low, high) if x is not None)
    return f"{value} [{', '.join(ends)}] {unit}".rstrip() if ends else value


def interval(c: Claim) -> str:
    """A claim's estimate with its interval, as text."""
    return in_unit(c.unit, c.estimate, c.ci_low, c.ci_high) or "not measured"


def as_markdown(claims: list[Claim]) -> str:
    """The scorecard as a Markdown table."""
    lines = ["| | claim | measured | estimate [95 %] | paper | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for c in claims:
        paper = in_unit(c.unit, c.paper)
        cells = (c.claim, c.title, c.quantity.replace("|", "\\|"), interval(c), paper, f"**{c.verdict}**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def points(x: Estimate) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * x.value:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"


def percent(x: Estimate) -> str:
    return f"{100 * x.value:+.0f} % [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"


def _claim(name: str, verdict: str, x: Estimate, paper: float | None, quantity: str, sentence: str) -> Claim:
    title = RULES[name].__doc__.strip().splitlines()[0].rstrip(".")
    return Claim(name, verdict, x.value, x.low, x.high, x.n, paper, title, quantity, sentence, UNITS[name])
