"""The claims as tests on a run's measurements: one file each, which assigns a `Rule` to `CLAIM`.

C1 to C9 are claims of arXiv:2509.12235 (C8's shares are from arXiv:2508.16546, another preprint), C10 of
arXiv:2605.10973, C11 of arXiv:2510.00237, C12 and C13 of arXiv:2509.04259. Each has up to two tests: as the paper tests
it (`paper`), and against what the paper does not compare with (`baselines`). There is no list of claims; one from
elsewhere is named as module:object.
All rules read intervals at 95 %. `supported` and `not supported` need an interval that lies wholly on one side of the
bar; anything else is `inconclusive`. `peak` is the OOD peak of SFT, `end` its last checkpoint; a corner is a split that
changes nothing of what SFT trains on, or the rule, or the numbers, or both (OOD). A run in which hardly any OOD answer
is ever right is judged by reading in place of accuracy, and says so (`results.judged_by`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from inspect import getdoc
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from oodlib.analysis.evidence import Evidence, Fall, Missing
from oodlib.analysis.stats import Estimate, Scores
from oodlib.io import read_json
from oodlib.registry import BASELINES, CLAIMS
from oodlib.tasks import Split

READING = "numbers read"  # in place of accuracy, where a run is judged by that (see `results.judged_by`)
VERDICTS = ("supported", "not supported", "inconclusive")
TESTS = {"paper": "as the paper tests it", "baselines": "against baselines"}
PAPER = read_json(Path(__file__).parents[1] / "paper_figures.json")
LLAMA = PAPER["stages"]["llama-3.2-11b"]["ood"]  # OOD accuracy by stage, in percent
FLAT = 0.05  # a relative change up to this is none: of a loss, of a singular value
SMALL = 0.10  # a recovered share up to this is nothing
NO_GAIN = 0.05  # a change in accuracy up to this is none: of a gain, of RL above the peak
FORMS = {"points": (100, "+.1f"), "%": (100, "+.0f"), "": (1, "+.2f"), "times": (1, ".2f")}  # a unit's factor, digits


@dataclass(frozen=True)
class Finding:
    """What a test finds in a run: `paper` is the paper's number for the same quantity, None where it has none."""

    verdict: str
    estimate: Estimate
    paper: float | None
    quantity: str
    sentence: str


Judge = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Rule:
    """A claim and its tests.

    A test returns its finding, and raises Missing where the run lacks what it needs; its docstring is the rule.

    Attributes:
        id: its name, such as C1.
        title: what it says.
        unit: the unit of `FORMS` that its numbers are shown in.
        version: the preprint, and its version, that it is taken from.
        paper: the paper's own test.
        baselines: the test that the paper lacks.
    """

    id: str
    title: str
    unit: str
    version: str
    paper: Judge | None = None
    baselines: Judge | None = None

    @property
    def tests(self) -> dict[str, Judge]:
        """The tests that there are, by name."""
        return {test: judge for test in TESTS if (judge := getattr(self, test))}

    def text(self, test: str) -> str:
        """A test's rule in words."""
        return getdoc(self.tests[test]) or ""


@dataclass(frozen=True)
class Claim:
    """A test of a claim, judged. Numbers are shares and ratios; `unit` is the one they are shown in (`in_unit`)."""

    claim: str
    test: str
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
    version: str


def names() -> list[str]:
    """The claims in this folder, by number: C1, C2, …"""
    return [name.upper() for name in sorted(CLAIMS.names(), key=lambda name: (len(name), name))]


def get(name: str) -> Rule:
    """A claim by its name, such as "C1", or as "module:object". ValueError where there is none."""
    return CLAIMS.get(name if ":" in name else name.lower())


def decide(supported: bool, refuted: bool) -> str:
    """The verdict; a claim that is both (a part of it holds, another fails) is not supported."""
    return "not supported" if refuted else "supported" if supported else "inconclusive"


def above_all(gaps: Mapping[str, Estimate]) -> tuple[str, str]:
    """Of the gaps to several others the smallest, by its name, and the verdict: supported above EVERY other, not
    supported where one is not exceeded, with the whole interval."""
    best = min(gaps, key=lambda name: gaps[name].value)
    return best, decide(all(gap.low > 0 for gap in gaps.values()), any(gap.high <= 0 for gap in gaps.values()))


def judge(name: str, evidence: Evidence, test: str = "paper") -> Claim:
    """One test of a claim; where the run lacks what it needs, `inconclusive` with a sentence that says so."""
    rule, evidence.used = get(name), False
    try:
        found = rule.tests[test](evidence)
    except Missing as error:
        nothing = Estimate(np.nan, np.nan, np.nan, 0, "nothing")
        found = Finding("inconclusive", nothing, None, "", f"This run does not tell: {error.args[0]}.")
    quantity, sentence = found.quantity, found.sentence
    if evidence.outcome != "correct" and evidence.used and found.estimate.n:
        quantity, sentence = f"{READING}: {quantity}", f"Judged by {READING}, for hardly an answer is right. {sentence}"
    x, shown = found.estimate, (rule.title, quantity, sentence, rule.unit, rule.version)
    return Claim(rule.id, test, found.verdict, x.value, x.low, x.high, x.n, found.paper, *shown)


def scorecard(evidence: Evidence, extra: Iterable[str] = ()) -> list[Claim]:
    """Every test of every claim with its verdict, and those of `extra`, named as module:object."""
    return [judge(name, evidence, test) for name in (*names(), *extra) for test in get(name).tests]


def by_claim(claims: Iterable[Claim]) -> list[dict[str, Claim]]:
    """The lines of a scorecard: of each claim its tests by name."""
    return [{c.test: c for c in tests} for _, tests in groupby(claims, lambda c: c.claim)]


def as_json(claims: list[Claim]) -> str:
    """The scorecard as JSON text; numbers that are not there (NaN) as null."""
    rows = [{k: None if v is not None and v != v else v for k, v in asdict(c).items()} for c in claims]
    return json.dumps(rows, indent=1) + "\n"


def from_json(text: str) -> list[Claim]:
    """The scorecard that `as_json` wrote."""
    numbers = ("estimate", "ci_low", "ci_high")
    return [Claim(**{**row, **{n: np.nan for n in numbers if row[n] is None}}) for row in json.loads(text)]


def beside(cards: Mapping[str, list[Claim]]) -> pd.DataFrame:
    """Scorecards side by side: a row a claim and test, a column a run, the paper's number, and whether the runs that
    measured it agree."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    verdicts: dict[tuple[str, str], list[str]] = {}
    for run, card in cards.items():
        for c in card:
            key = c.claim, TESTS[c.test]
            rows.setdefault(key, {})[run] = f"{c.verdict}: {interval(c)}" if c.n else interval(c)
            rows[key]["paper"] = rows[key].get("paper") or in_unit(c.unit, c.paper)
            verdicts.setdefault(key, []).extend([c.verdict] if c.n else [])
    for key, found in verdicts.items():
        rows[key]["runs"] = _agreement(found)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*cards, "paper", "runs"])
    return table.fillna("not measured").rename_axis(["claim", "test"])


def _agreement(verdicts: list[str]) -> str:
    if len(verdicts) < 2:
        return "not measured by two"
    return f"{verdicts[0]} in all {len(verdicts)}" if len(set(verdicts)) == 1 else "different"


def as_markdown(claims: list[Claim], others: Mapping[str, list[Claim]] | None = None) -> str:
    """The scorecard as a Markdown table, a line a claim, a column a test, a column another run (the paper's test)."""
    others = {name: {c.claim: c for c in card if c.test == "paper"} for name, card in (others or {}).items()}
    heads = [*TESTS.values(), *(f"{name}, {TESTS['paper']}".replace("|", "\\|") for name in others)]
    lines = [f"| | claim | {' | '.join(heads)} |", "| --- " * (4 + len(others)) + "|"]
    for tests in by_claim(claims):
        first = next(iter(tests.values()))
        cells = [_cell(tests[test]) if test in tests else "–" for test in TESTS]
        for card in others.values():
            theirs = card.get(first.claim)
            cells.append(f"{theirs.verdict}: {interval(theirs)}" if theirs and theirs.n else "not measured")
        lines.append(f"| {first.claim} | {first.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(c: Claim) -> str:
    quantity, paper = c.quantity.replace("|", "\\|"), in_unit(c.unit, c.paper)
    if not c.n:
        return interval(c)
    return f"**{c.verdict}**: {quantity} {interval(c)}{paper and f' (paper {paper})'}"


def sentence(evidence: Evidence, *names: str) -> str:
    """Claims in words, as Markdown, a paragraph a test: the verdict, then what was measured."""
    judged = [judge(name, evidence, test) for name in names for test in get(name).tests]
    return "\n\n".join(f"**What was seen, {c.claim} {TESTS[c.test]}: {c.verdict}.** {c.sentence}" for c in judged)


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


# ---- what several claims use -------------------------------------------------------------------------


def points(x: Estimate) -> str:
    """A difference of accuracies in percentage points."""
    return x.text("+.1f", 100)


def percent(x: Estimate) -> str:
    value, *interval = x.text("+.0f", 100).split(" ", 1)
    return " ".join([value, "%", *interval])


def listed(parts: Iterable[str]) -> str:
    """ "a, b and c"."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def mean_at(e: Evidence, split: Split, step: int | None = None, column: str | None = None) -> float:
    """The mean over seeds of a column at an SFT step; without one, at each seed's OOD peak."""
    both = zip(e.scores(split, column), e.peaks, strict=True)
    return float(np.mean([s[e.sft(peak if step is None else step)] for s, peak in both]))


def by_corner(
    e: Evidence, statistic: Callable[[Scores, Fall], float], column: str | None = None
) -> dict[str, Estimate]:
    """A statistic on every split, by the split's label."""
    return {split.label: e.measure(statistic, split, column=column) for split in e.splits}


def arms_with(e: Evidence, *information: str) -> dict[str, str]:
    """The baselines of the run that count and have such information (equal, more, none): labels by name."""
    labels = {}
    for arm in e.arms:
        with suppress(ValueError):  # RL itself, or a baseline from elsewhere that is not installed here
            baseline = BASELINES.get(arm)
            if baseline.counts and baseline.information in information:
                labels[arm] = baseline.label
    return labels
