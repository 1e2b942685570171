"""What mitigations keep: at the end, and at equal ID accuracy; on made-up tables."""

import numpy as np
import pandas as pd
import pytest
from made_up_sweep import SPLITS, made_up

from oodlib import plots
from oodlib.analysis import Evidence, claims, same_start
from oodlib.analysis import mitigations as m
from oodlib.analysis.sweep import Plan, Sweep
from oodlib.config import CHECKOUT, PARAMS
from oodlib.io import COLUMNS


def path(name, seed, *points):
    """Of (trained, headline) accuracies by checkpoint, the base first."""
    return pd.DataFrame(
        [(name, seed, 100 * i, *point) for i, point in enumerate([(0.0, 0.0), *points])],
        columns=["mitigation", "seed", "step", "trained", "headline"],
    )


def test_a_table_has_a_row_a_mitigation_and_seed_in_the_plan_s_order():
    names = dict(Plan().mitigations("mitigations")["name"])
    table = m.mitigations(made_up(phase="mitigations", seeds=[30, 31]), names, SPLITS)
    others = [split.name for split in SPLITS.others]
    assert table.columns.tolist() == ["mitigation", "seed", "trained", "headline", *others, "angle"]
    assert len(table) == 12
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
    evidence = Evidence.of_sweep(SPLITS, mitigations=pd.concat([*cosine, *held]))
    assert claims.judge("C10", evidence, "baselines").verdict == verdict
    assert "no seed has both" in claims.judge("C10", evidence, "paper").sentence


def test_a_partial_table_says_so():
    one = m.curves(made_up(phase="mitigations", seeds=[30]), dict(Plan().mitigations("mitigations")["name"]), SPLITS)
    assert claims.judge("C10", Evidence.of_sweep(SPLITS, mitigations=one), "paper").verdict == "inconclusive"
    assert "notebook 06" in claims.judge("C10", Evidence.of_sweep(SPLITS, mitigations=one.iloc[:0])).sentence
    assert set(m.equal_accuracy_table(one, "RPSFT")["seeds"]) == {1}
    with pytest.raises(ValueError, match="no rows of any mitigation"):
        m.curves(made_up(seeds=[30]), {"nothing": "x"}, SPLITS)


def test_of_each_mitigation_the_strength_that_keeps_most_at_equal_accuracy_is_chosen():
    """The strongest ends with most OOD accuracy, and learns so little that plain SFT had as much there."""
    ends_at = {"plain SFT": (0.8, 0.3), "held, 1": (0.8, 0.35), "held, 10": (0.8, 0.4), "held, 100": (0.6, 0.65)}
    along = pd.concat([path(name, s, (0.6, 0.7), end) for name, end in ends_at.items() for s in range(2)])
    called = {name: name.partition(",")[0] for name in ends_at}
    assert m.chosen(along, called, "plain SFT") == {"plain SFT": "plain SFT", "held, 10": "held"}
    kept = m.at_strengths(along, m.chosen(along, called, "plain SFT"))
    assert set(kept["mitigation"]) == {"plain SFT", "held"}
    assert m.ends(kept).query("mitigation == 'held'")["headline"].tolist() == [0.4, 0.4]
    with pytest.raises(ValueError, match="no strength of held was measured"):
        m.chosen(along[along["mitigation"] == "plain SFT"], called, "plain SFT")


def test_corners_are_compared_at_equal_accuracy_too():
    along = pd.concat([path(n, s, (0.6, 0.7), (0.8, 0.3)) for n in ("plain SFT", "held") for s in range(3)])
    rule = np.where((along["mitigation"] == "held") & (along["step"] == 200), 0.6, 0.5)
    table = m.by_corner(along.assign(new_rule=rule), "plain SFT", SPLITS)
    assert table.index.tolist() == ["held"] and table.filter(like="end").iloc[0, 0].startswith("+0.0")
    assert table.filter(like="new rule").iloc[0, 0].startswith("+10.0")


def test_a_condition_with_strengths_stands_for_one_a_value(tmp_path):
    text = """
like: smoke
conditions:
  plain: {mitigation: plain SFT}
  held: {mitigation: held, changes: {sft: {mitigation: l2}}, strengths: {sft.mitigation_weight: [0.1, 2]}}
blocks: {all: {conditions: [plain, held]}}
phases: {search: {seeds: [0], blocks: [all]}}
"""
    (tmp_path / "held.yaml").write_text(text, encoding="utf-8")
    plan = Plan(tmp_path / "held.yaml")
    assert plan.names("search") == ["plain", "held@0.1", "held@2"]
    assert [cell.config.sft.mitigation_weight for cell in plan.cells("search")] == [0.0, 0.1, 2.0]
    assert {cell.config.sft.mitigation for cell in plan.cells("search")} == {"none", "l2"}
    about = plan.mitigations("search")
    assert about["name"].tolist() == ["plain SFT", "held, 0.1", "held, 2"]
    assert about["mitigation"].tolist() == ["plain SFT", "held", "held"]
    assert Sweep(plan).folder.name == "held"
    (tmp_path / "held.yaml").write_text(text.replace("[0.1, 2]", "[strong]"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"held.yaml.*strengths.*strong"):
        Plan(tmp_path / "held.yaml")


def test_the_mitigations_plan_is_valid_and_fits_its_hours():
    plan = Plan(PARAMS / "sweeps" / "mitigations.yaml")
    searched, reported = (set(plan.seeds(phase)) for phase in ("search", "mitigations"))
    assert not searched & reported
    for phase in plan.phases:
        assert all(plan.conditions[cell.condition]["why"] for cell in plan.cells(phase))
    assert plan.mitigations("search")["name"].is_unique
    assert plan.mitigations("search")["mitigation"].iloc[0] == "plain SFT"
    report = (CHECKOUT / "docs" / "sweep.md").read_text(encoding="utf-8")
    assert f"{plan.hours('search'):.1f} hours for *search* and {plan.hours('mitigations'):.1f} for" in report


def test_rl_and_sft_from_one_start_are_compared_at_equal_id_accuracy():
    def rows(arm, start, steps, seed, **accuracies):
        stage, arm = ("sft", "sft") if arm == "sft" else ("rl", arm)
        return [
            (stage, arm, start, step, seed, split, "accuracy", value, 100)
            for split, values in accuracies.items()
            for step, value in zip(steps, values, strict=True)
        ]

    found = []
    for seed in range(3):
        more = 0.01 * seed
        found += rows("sft", 0, (0, 8, 100), seed, id=(0, 0.4, 0.8), ood=(0, 0.5 + more, 0.1 + more))
        found += rows("rl", 8, (40, 80), seed, id=(0.5, 0.6), ood=(0.5 + more, 0.45 + more))
        found += rows("rejection_sampling", 8, (80,), seed, id=(0.6,), ood=(0.4 + more,))
    table = pd.DataFrame(found, columns=COLUMNS)
    paths = same_start.paths(table, 8, SPLITS)
    rl = paths.query("mitigation == 'rl' and seed == 0")
    assert rl["step"].tolist() == [8, 48, 88] and rl["trained"].tolist() == [0.4, 0.5, 0.6]
    gaps = m.against_others(paths, "rl")
    assert set(gaps) == {"sft", "rejection_sampling"}
    assert gaps["sft"].value == pytest.approx(0.45 - 0.3), "SFT has as much ID accuracy half way down"
    assert gaps["rejection_sampling"].value == pytest.approx(0.05)
    assert [same_start.learns_from_demonstrations(arm) for arm in ("sft", "sft_continued", "rl")] == [True, True, False]


def test_figures_can_be_read(smallest_text, texts_on_texts):
    plots.style()
    rows, names = made_up(phase="mitigations", seeds=range(30, 33)), dict(Plan().mitigations("mitigations")["name"])
    table, along = m.mitigations(rows, names, SPLITS), m.curves(rows, names, SPLITS)
    for figure in (
        plots.mitigations.pareto(table, SPLITS, along, m.at_peak(along, "plain SFT")),
        plots.mitigations.turned(table, SPLITS),
        plots.mitigations.equal_accuracy(m.against_others(along, "RPSFT"), "RPSFT", SPLITS),
    ):
        assert smallest_text(figure) >= 8 and texts_on_texts(figure) == []
    assert m.compare_mitigations(table, "plain SFT").loc["lower rate", "angle (°)"].startswith("-")
