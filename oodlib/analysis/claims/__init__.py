"""The claims of arXiv:2509.12235 as tests on a run's measurements: one file each, which assigns a `Rule` to `CLAIM`.

There is no list of them; a claim from elsewhere is named as module:object. All rules read intervals at 95 %.
`supported` and `not supported` need an interval that lies wholly on one side of the bar; anything else is
`inconclusive`. `peak` is the OOD peak of SFT, `end` its last checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from inspect import getdoc
from pathlib import Path

import numpy as np

from oodlib.analysis.evidence import Evidence, Missing
from oodlib.analysis.stats import Estimate
from oodlib.io import read_json
from oodlib.registry import CLAIMS

VERDICTS = ("supported", "not supported", "inconclusive")
PAPER = read_json(Path(__file__).parents[1] / "paper_figures.json")
LLAMA = PAPER["stages"]["llama-3.2-11b"]["ood"]  # OOD accuracy by stage, in percent
FLAT = 0.05  # a relative change up to this is none: of a loss, of a singular value
SMALL = 0.10  # a recovered share up to this is nothing
NO_GAIN = 0.05  # a gain in accuracy up to this is no help; RL up to this above the peak does not exceed it
FORMS = {"points": (100, "+.1f"), "%": (100, "+.0f"), "": (1, "+.2f"), "times": (1, ".2f")}  # a unit's factor, digits


@dataclass(frozen=True)
class Finding:
    """What a rule finds in a run: `paper` is the paper's number for the same quantity, None where it has none."""

    verdict: str
    estimate: Estimate
    paper: float | None
    quantity: str
    sentence: str


@dataclass(frozen=True)
class Rule:
    """A claim: its name (C1), what it says, the unit of `FORMS` that its number is shown in, and how it is judged.

    `judge` returns the finding, and raises Missing where the run lacks what it needs; its docstring is the rule.
    """

    id: str
    title: str
    unit: str
    judge: Callable[[Evidence], Finding]

    @property
    def text(self) -> str:
        """The rule in words."""
        return getdoc(self.judge) or ""


@dataclass(frozen=True)
class Claim:
    """A line of the scorecard. Numbers are shares and ratios; `unit` is the one that they are shown in (`in_unit`)."""

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


def names() -> list[str]:
    """The claims in this folder, by number: C1, C2, …"""
    return [name.upper() for name in sorted(CLAIMS.names(), key=lambda name: (len(name), name))]


def get(name: str) -> Rule:
    """A claim by its name, such as "C1", or as "module:object". ValueError where there is none."""
    return CLAIMS.get(name if ":" in name else name.lower())


def decide(supported: bool, refuted: bool) -> str:
    """The verdict; a claim that is both (a part of it holds, another fails) is not supported."""
    return "not supported" if refuted else "supported" if supported else "inconclusive"


def judge(name: str, evidence: Evidence) -> Claim:
    """One claim; where the run lacks what its rule needs, `inconclusive` with a sentence that says so."""
    rule = get(name)
    try:
        result = rule.judge(evidence)
    except Missing as error:
        nothing = Estimate(np.nan, np.nan, np.nan, 0, "nothing")
        result = Finding("inconclusive", nothing, None, "", f"This run does not tell: {error.args[0]}.")
    x, shown = result.estimate, (rule.title, result.quantity, result.sentence, rule.unit)
    return Claim(rule.id, result.verdict, x.value, x.low, x.high, x.n, result.paper, *shown)


def scorecard(evidence: Evidence, extra: Iterable[str] = ()) -> list[Claim]:
    """Every claim with its verdict, and those of `extra`, named as module:object."""
    return [judge(name, evidence) for name in (*names(), *extra)]


def as_json(claims: list[Claim]) -> str:
    """The scorecard as JSON text; numbers that are not there (NaN) as null."""
    rows = [{k: None if v is not None and v != v else v for k, v in asdict(c).items()} for c in claims]
    return json.dumps(rows, indent=1) + "\n"


def as_markdown(claims: list[Claim]) -> str:
    """The scorecard as a Markdown table."""
    lines = ["| | claim | measured | estimate [95 %] | paper | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for c in claims:
        paper = in_unit(c.unit, c.paper)
        cells = (c.claim, c.title, c.quantity.replace("|", "\\|"), interval(c), paper, f"**{c.verdict}**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sentence(evidence: Evidence, *names: str) -> str:
    """Claims in words, as Markdown: verdicts first, then what was measured."""
    judged = [judge(name, evidence) for name in names]
    verdicts = "; ".join(f"{c.claim}: {c.verdict}" for c in judged)
    return f"**What was seen ({verdicts}).** " + " ".join(c.sentence for c in judged)


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


def points(x: Estimate) -> str:
    """A difference of accuracies in percentage points."""
    return x.text("+.1f", 100)


def percent(x: Estimate) -> str:
    return f"{100 * x.value:+.0f} % [{100 * x.low:+.0f}, {100 * x.high:+.0f}]"
