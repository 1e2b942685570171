"""The first steps of SFT mostly teach the output format"""

from oodlib.analysis.claims import PAPER, Finding, Rule, decide, mean_at, points
from oodlib.analysis.evidence import Evidence

FORMAT_DONE = 0.9  # share of the malformed answers that must be gone by the peak


def paper(e: Evidence) -> Finding:
    """Estimate: the share of OOD answers that are malformed at step 0, less that at the OOD peak. Supported:
    above 90 % of the share at step 0 (and that at least one half). Not supported: below it. The tiny base model
    was made to break the format, as real ones do: here the claim is about how fast SFT mends that.
    """
    start = mean_at(e, e.splits.headline, 0, "malformed")
    mended = e.measure(lambda s, fall: s[e.sft(0)] - s[e.sft(fall.peak)], column="malformed")
    bar = FORMAT_DONE * start
    verdict = decide(mended.low > bar and start >= 0.5, mended.high < bar or start < 0.5)
    paper = PAPER["format_error_percent"]["llama-3.2-11b"]
    sentence = (
        f"Before SFT {start:.0%} of the OOD answers are malformed; by the OOD peak the share has fallen by "
        f"{points(mended)} points."
    )
    return Finding(verdict, mended, (paper[0] - paper[-1]) / 100, "malformed(step 0) - malformed(peak)", sentence)


CLAIM = Rule("C3", __doc__, "points", "arXiv:2509.12235v1", paper)
