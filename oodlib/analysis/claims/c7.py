"""Singular values hardly change, and restoring them does not change OOD accuracy"""

import numpy as np

from oodlib.analysis.claims import FLAT, LLAMA, PAPER, SMALL, Finding, Rule, decide, percent
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.stages import edit_name


def paper(e: Evidence) -> Finding:
    """The official edit: the peak's values in every matrix, embeddings and head included. Estimate: the share of the
    lost OOD accuracy that it brings back, at the measured share of the directions where that is largest in size.
    Supported: within 10 % either way for each, and a mean relative change of the values below 5 % both from base to end
    and through RL. Not supported: one wholly beyond 10 %, or a larger change.
    """
    shares = [e.measure(e.recovered(name)) for name in e.edit_names(edit_name("values", "every matrix"))]
    changes = e.rotation[e.rotation["metric"] == "value_change"]
    through = {"SFT": f"arm == 'sft' and from_step == 0 and step == {e.end}", "RL": "arm == 'rl'"}
    moved = {name: float(changes.query(rows)["value"].mean()) for name, rows in through.items()}
    if not shares or any(np.isnan(m) for m in moved.values()):
        raise Missing("no edit of singular values, or no spectra")
    verdict = decide(
        all(x.low > -SMALL and x.high < SMALL for x in shares) and all(m < FLAT for m in moved.values()),
        any(x.low > SMALL or x.high < -SMALL for x in shares) or any(m > FLAT for m in moved.values()),
    )
    largest = max(shares, key=lambda x: abs(x.value))
    restored = PAPER["restore_singular_values_ood"]["llama-3.2-11b"]
    changed = max((ood - restored["baseline"] for ood in restored["ood"]), key=abs)
    number = changed / (LLAMA["sft_peak"] - LLAMA["sft_moderate"])
    sentence = (
        f"Singular values change by {moved['SFT']:.1%} on average through SFT and {moved['RL']:.1%} through RL; "
        f"putting the peak's values back in every matrix recovers {percent(largest)} of the lost OOD accuracy at most."
    )
    return Finding(verdict, largest, number, "share of lost OOD recovered by singular values", sentence)


CLAIM = Rule("C7", __doc__, "%", "arXiv:2509.12235v3", paper)
