"""What mitigations keep: at the end, and at equal ID accuracy; on made-up tables."""

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import SPLITS, made_up

from oodlib import plots
from oodlib.analysis import Evidence, claims
from oodlib.analysis import mitigations as m
from oodlib.analysis.sweep import Plan


def path(name, seed, *points):
    """Of (trained, headline) accuracies by checkpoint, the base first."""
    return pd.DataFrame(
        [(name, seed, 100 * i, *point) for i, point in enumerate([(0.0, 0.0), *points])],
        columns=["mitigation", "seed", "step", "trained", "headline"],
    )


def test_a_table_has_a_row_a_mitigation_and_seed_in_the_plan_s_order():
    names = Plan().mitigations("mitigations")
    table = m.mitigations(made_up(phase="mitigations", seeds=[30, 31]), names, SPLITS)
    assert table.columns.tolist() == ["mitigation", "seed", "trained", "headline", "angle"] and len(table) == 12
    assert table["mitigation"].unique().tolist() == list(names.values())
    assert table.loc[0, "angle"] == pytest.approx(np.degrees(0.1), abs=0.5)


def test_the_accuracy_that_a_path_reaches_is_its_best_with_so_much_id_accuracy():
    one = path("x", 0, (0.6, 0.7), (0.5, 0.5), (0.8, 0.2))
    assert m.reached(one, 0.55) == 0.7 and m.reached(one, 0.8) == 0.2
    assert m.reached(one, 0.65) == pytest.approx(0.35), "between checkpoints, on a straight line"
    assert np.isnan(m.reached(one, 0.9))


def test_learning_less_is_no_mitigation():
    """A slow one ends with more OOD accuracy and less ID accuracy, on plain SFT's own path."""
    plain = [path("plain SFT", s, (0.6, 0.7), (0.8, 0.3 + 0.01 * s)) for s in range(4)]
    slow = [path("RPSFT", s, (0.6, 0.7), (0.7, 0.5 + 0.005 * s)) for s in range(4)]
    along = pd.concat([*plain, *slow])
    ends = along[along["step"] == 200]
    assert m.difference(ends, "headline", "RPSFT", "plain SFT").low > 0.1
    assert m.against_others(along, "RPSFT")["plain SFT"].value == pytest.approx(0)
    assert "+18." in m.what_keeps(ends, along, "plain SFT") and "OOD at equal ID" in m.what_keeps(
        ends, along, "plain SFT"
    )


@pytest.mark.parametrize(("more", "verdict"), [(0.1, "supported"), (-0.1, "not supported"), (0.0, "inconclusive")])
def test_the_claim_follows_the_comparison_at_equal_accuracy(more, verdict):
    rng = np.random.default_rng(0)
    cosine = [path("cosine", s, (0.6, 0.7), (0.8, 0.3 + rng.normal(0, 0.01))) for s in range(5)]
    held = [path("RPSFT", s, (0.6, 0.7), (0.8, 0.3 + more + rng.normal(0, 0.01))) for s in range(5)]
    evidence = Evidence.of_mitigations(pd.concat([*cosine, *held]), SPLITS)
    assert claims.judge("C10", evidence, "baselines").verdict == verdict
    assert "no seed has both" in claims.judge("C10", evidence, "paper").sentence


def test_a_partial_table_says_so():
    one = m.curves(made_up(phase="mitigations", seeds=[30]), Plan().mitigations("mitigations"), SPLITS)
    assert claims.judge("C10", Evidence.of_mitigations(one, SPLITS), "paper").verdict == "inconclusive"
    assert "notebook 06" in claims.judge("C10", Evidence.of_mitigations(one.iloc[:0], SPLITS)).sentence
    assert set(m.equal_accuracy_table(one, "RPSFT")["seeds"]) == {1}
    with pytest.raises(ValueError, match="no rows of any mitigation"):
        m.curves(made_up(seeds=[30]), {"nothing": "x"}, SPLITS)


def test_figures_can_be_read(smallest_text, texts_on_texts):
    plots.style()
    rows, names = made_up(phase="mitigations", seeds=range(30, 33)), Plan().mitigations("mitigations")
    table, along = m.mitigations(rows, names, SPLITS), m.curves(rows, names, SPLITS)
    for figure in (
        plots.sweep.mitigations(table, SPLITS, along, m.at_peak(along, "plain SFT")),
        plots.sweep.turned(table, SPLITS),
        plots.sweep.equal_accuracy(m.against_others(along, "RPSFT"), "RPSFT", SPLITS),
    ):
        assert smallest_text(figure) >= 8 and texts_on_texts(figure) == []
    assert m.compare_mitigations(table, "plain SFT").loc["lower rate", "angle (°)"].startswith("-")
