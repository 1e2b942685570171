"""Singular vectors rotate, and restoring them restores OOD accuracy"""

from oodlib.analysis.claims import PAPER, SMALL, Finding, Rule, by_corner, decide, listed, percent, points
from oodlib.analysis.evidence import Evidence, Missing
from oodlib.stages import NULLS, edit_name

QUARTER = 0.25  # of the directions; arXiv:2508.16546 restores a fifth
LEVEL = PAPER["restore_singular_vectors"]["ood_recovered_share"]  # of the peak's OOD accuracy, as it reads


def paper(e: Evidence) -> Finding:
    """The two official edits, like for like: the first quarter of the layers, whole weights, with embeddings and head;
    the leading quarter of the singular vectors of every matrix. Estimate, in the unit of arXiv:2508.16546, whose share
    it is: the edited model's OOD accuracy over the peak's, at the edit where that is lower. Supported: at least 70 % at
    both edits, and both above the unedited end. Not supported: below 70 % at one, or not above the end.
    """
    edits = {
        "the first quarter of the layers with embeddings and head": edit_name("whole", f"{_layers(e)} and embeddings"),
        "the leading quarter of every matrix's vectors": edit_name("vectors", "every matrix", QUARTER),
    }
    lost = {what: e.measure(e.recovered(edit)) for what, edit in edits.items()}
    level = {
        what: e.measure(lambda s, fall, edit=edit: s["surgery", edit, fall.peak, e.end] / s[e.sft(fall.peak)])
        for what, edit in edits.items()
    }
    end = e.measure(lambda s, fall: s[e.sft(e.end)] / s[e.sft(fall.peak)])
    verdict = decide(
        all(level[what].low > LEVEL[0] and lost[what].low > 0 for what in edits),
        any(level[what].high < LEVEL[0] or lost[what].high <= 0 for what in edits),
    )
    lower = min(level.values(), key=lambda x: x.value)
    parts = listed(f"with {what} {percent(level[what])} ({percent(lost[what])} of the loss)" for what in edits)
    sentence = (
        f"The end of SFT has {percent(end)} of the peak's OOD accuracy; {parts}. arXiv:2508.16546 gives "
        f"{100 * LEVEL[0]:.0f} to {100 * LEVEL[1]:.0f} % of the level."
    )
    return Finding(verdict, lower, sum(LEVEL) / 2, "OOD(edited) / OOD(peak), the lower of two edits", sentence)


def baselines(e: Evidence) -> Finding:
    """Is it the vectors? Estimate: the share of the lost OOD accuracy that the peak's singular vectors bring back in
    the projections (no embeddings, no head, values as at the end), less what embeddings and head alone bring back.
    Supported: above 0, and the vectors bring back more than 10 % and more than each null edit: a random turn by the
    same angles, the same turn with random signs, noise of the same size. Not supported: one of these fails with the
    whole interval. The sentence gives each part with its nulls, and the change of accuracy by corner.
    """
    vectors, whole = ("vectors", "projections"), ("whole", "embeddings")
    restored, rest = e.recovered(edit_name(*vectors)), e.recovered(edit_name(*whole))
    share, gap = e.measure(restored), e.measure(lambda s, fall: restored(s, fall) - rest(s, fall))
    nulls = [e.recovered(*names) for names in _nulls(e, *vectors).values()]
    if len(nulls) < len(NULLS):
        raise Missing("null edits of the projections' vectors are lacking (surgery.draws)")
    over = [e.measure(lambda s, fall, null=null: restored(s, fall) - null(s, fall)) for null in nulls]
    verdict = decide(
        gap.low > 0 and share.low > SMALL and all(x.low > 0 for x in over),
        gap.high <= 0 or share.high < SMALL or any(x.high <= 0 for x in over),
    )
    parts = {
        "the vectors of the projections": vectors,
        "their leading quarter": (*vectors, QUARTER),
        "the first quarter of the layers without embeddings and head": ("whole", _layers(e)),
        "embeddings and head": whole,
        "the rows of the new numbers": ("whole", "numbers"),
    }
    measured = {what: part for what, part in parts.items() if edit_name(*part) in e.edit_names("")}
    told = "; ".join(f"{what} {_told(e, *part)}" for what, part in measured.items())
    sentence = f"Share of the lost OOD accuracy that comes back, and change of accuracy in points by corner: {told}."
    quantity = "share recovered by the projections' vectors - by embeddings and head"
    return Finding(verdict, gap, None, quantity, sentence)


def _layers(e: Evidence) -> str:
    """The first quarter of the layers, as edits are named."""
    if e.rotation.empty:
        raise Missing("no spectra")
    return f"layers {max(1, round((e.rotation['layer'].max() + 1) / 4))}"


def _nulls(e: Evidence, part: str, where: str, top: float = 1.0) -> dict[str, list[str]]:
    """The measured draws of the null edits for an edit."""
    draws = {null: e.edit_names(f"{edit_name(null, where, top, of=part)}, draw ") for null in NULLS}
    return {null: names for null, names in draws.items() if names}


def _told(e: Evidence, *part: str | float) -> str:
    """What an edit and its nulls bring back, and where, in words."""
    edit, draws = edit_name(*part), _nulls(e, *part)
    nulls = "".join(f", {null} {percent(e.measure(e.recovered(*names)))}" for null, names in draws.items())
    corners = listed(f"{label} {points(x)}" for label, x in by_corner(e, e.changed(edit)).items())
    return f"{percent(e.measure(e.recovered(edit)))}{nulls} ({corners})"


CLAIM = Rule("C8", __doc__, "%", "arXiv:2509.12235v3, its shares: arXiv:2508.16546", paper, baselines)
