"""What looks like OOD forgetting is clinging to the rule of SFT"""

from oodlib.analysis.claims import SMALL, Finding, Rule, decide, mean_at, points
from oodlib.analysis.evidence import Evidence
from oodlib.analysis.stats import Estimate
from oodlib.tasks import Split

CLINGING = 0.68  # old-rule accuracy of OOD answers, LLaMA, answers without chain of thought
OLD = "old_rule"
NAMED = "old_numbers"


def paper(e: Evidence) -> Finding:
    """Every OOD answer is judged a second time, under the rule of SFT. Estimate: this old-rule accuracy at the end.
    Supported: above 10 %, and above that at the OOD peak. Not supported: below 10 %, or not above that at the peak.
    """
    split = e.splits.headline
    end, rise = e.measure(lambda s, _: s[e.sft(e.end)], column=OLD), _rise(e, split)
    verdict = decide(end.low > SMALL and rise.low > 0, end.high < SMALL or rise.high <= 0)
    sentence = (
        f"At the end {mean_at(e, split, e.end):.0%} of the OOD answers are right, and {end.value:.0%} under the rule "
        f"of SFT; from the OOD peak that share changes by {points(rise)} points."
    )
    return Finding(verdict, end, CLINGING, "old-rule accuracy of OOD answers at the end", sentence)


def baselines(e: Evidence) -> Finding:
    """Clinging shows in what an answer names, also where its formula is wrong; and if a model clings to the rule, it
    does so whichever numbers the new rule needs. Estimate: the rise, from the OOD peak to the end, of the answers that
    name the numbers of SFT's rule (without this measure: of old-rule accuracy), where the rule alone is new or on OOD,
    the smaller of the two. Supported: both above 0. Not supported: one not above 0, with the whole interval.
    """
    corners = (e.changing("rule"), e.splits.headline)
    named = NAMED in e.hands and e.hands[NAMED].notna().any()
    column, what = (NAMED, "answers that name the old numbers") if named else (OLD, "old-rule accuracy")
    rises = [_rise(e, split, column) for split in corners]
    verdict = decide(all(x.low > 0 for x in rises), any(x.high <= 0 for x in rises))
    parts = [
        f"{s.label} {mean_at(e, s, column=column):.0%} to {mean_at(e, s, e.end, column):.0%} ({points(x)} points)"
        for s, x in zip(corners, rises, strict=True)
    ]
    sentence = f"From the OOD peak to the end, {what}: {'; '.join(parts)}."
    quantity = f"rise of {what}, the smaller of {' and '.join(s.label for s in corners)}"
    return Finding(verdict, min(rises, key=lambda x: x.value), None, quantity, sentence)


def _rise(e: Evidence, split: Split, column: str = OLD) -> Estimate:
    return e.measure(lambda s, fall: s[e.sft(e.end)] - s[e.sft(fall.peak)], split, column=column)


CLAIM = Rule("C11", __doc__, "points", "arXiv:2510.00237v1", paper, baselines)
