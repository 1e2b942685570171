"""What mitigations keep, at equal ID accuracy and by corner, and notebook 06's figures; on made-up tables."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up_sweep import SPLITS, made_up

from oodlib import plots
from oodlib.analysis import Evidence, claims, same_start
from oodlib.analysis import mitigations as m
from oodlib.analysis.plan import Plan
from oodlib.analysis.predictors import advice, forgetting, hidden_states, strengths
from oodlib.analysis.selection import by_rule, regrets
from oodlib.analysis.selection import paths as selected_from
from oodlib.analysis.sweep import Sweep
from oodlib.config import CHECKOUT
from oodlib.io import COLUMNS


def path(name, seed, *points):
    """Of (trained, headline) accuracies by checkpoint, the base first."""
    return pd.DataFrame(
        [(name, seed, 100 * i, *point) for i, point in enumerate([(0.0, 0.0), *points])],
        columns=["mitigation", "seed", "step", "trained", "headline"],
    )


def test_curves_have_a_row_a_mitigation_seed_and_step_in_the_plan_s_order():
    names = dict(Plan("mitigations").mitigations("search")["name"])
    along = m.curves(made_up(phase="search", seeds=[0, 1], plan=Plan("mitigations")), names, SPLITS)
    others = [split.name for split in SPLITS.others]
    assert along.columns.tolist() == ["mitigation", "seed", "step", "trained", "headline", *others]
    assert along["mitigation"].unique().tolist() == list(names.values())
    assert len(m.ends(along)) == 2 * len(names) and set(m.ends(along)["step"]) == {300}


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
    assert "none of 1 mitigations is shown to keep more OOD" in m.advice(along, "plain SFT", SPLITS, {})


@pytest.mark.parametrize(("more", "verdict"), [(0.1, "supported"), (-0.1, "not supported"), (0.0, "inconclusive")])
def test_the_claim_follows_the_comparison_at_equal_accuracy(more, verdict):
    rng = np.random.default_rng(0)
    cosine = [path("cosine", s, (0.6, 0.7), (0.8, 0.3 + rng.normal(0, 0.01))) for s in range(5)]
    held = [path("RPSFT", s, (0.6, 0.7), (0.8, 0.3 + more + rng.normal(0, 0.01))) for s in range(5)]
    evidence = Evidence.of_sweep(SPLITS, mitigations=pd.concat([*cosine, *held]))
    assert claims.judge("C10", evidence, "baselines").verdict == verdict
    assert "no seed has both" in claims.judge("C10", evidence, "paper").sentence


def test_a_partial_table_says_so():
    plan = Plan("mitigations")
    one = m.curves(made_up(phase="search", seeds=[0], plan=plan), {"plain": "plain SFT", "rpsft@1": "RPSFT"}, SPLITS)
    assert claims.judge("C10", Evidence.of_sweep(SPLITS, mitigations=one), "paper").verdict == "inconclusive"
    assert "notebook 06" in claims.judge("C10", Evidence.of_sweep(SPLITS, mitigations=one.iloc[:0])).sentence
    assert {gain.n for gain in m.by_corner(one, "plain SFT", SPLITS)["gain"]} == {1}
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


def test_what_learns_no_more_than_plain_sft_had_at_its_peak_is_not_compared():
    """Before the peak nothing was forgotten, so there all are level; one seed in which that is so is enough."""
    ends_at = {"plain SFT": (0.8, 0.3), "held, 1": (0.59, 0.65), "held, 2": (0.6, 0.1), "kept": (0.7, 0.6)}
    along = pd.concat([path(name, s, (0.6, 0.7), end) for name, end in ends_at.items() for s in range(3)])
    assert m.learners(along) == ["plain SFT", "kept"]
    called = {name: name.partition(",")[0] for name in ends_at}
    assert m.chosen(along, called, "plain SFT")["held, 2"] == "held", "of those that learn too little the one with most"
    once = along.assign(trained=along["trained"].where((along["mitigation"] != "kept") | (along["seed"] > 0), 0.5))
    assert m.learners(once) == ["plain SFT"]
    found = m.by_corner(along, "plain SFT", SPLITS)
    assert set(found.loc[found["split"] == "ood", "mitigation"]) == {"kept"} and len(found) == 4
    assert m.corner_table(along, "plain SFT", SPLITS, {}).loc["held, 1", "OOD, equal ID"] == m.TOO_LITTLE
    assert m.against_others(along, "held, 1") == {} and set(m.against_others(along, "kept")) == {"plain SFT"}
    assert "learn too little: held, 1 and held, 2." in m.advice(along, "plain SFT", SPLITS, {})


def test_format_and_knowledge_are_told_apart():
    metrics = {"accuracy": (0.3, 0.2), "wrong_value": (0.1, 0.0), "wrong_numbers": (0.1, 0.0), "malformed": (0.5, 0.8)}
    rows = [
        ("held", "sft", "sft", 0, step, 0, "ood", metric, value, 100)
        for metric, values in metrics.items()
        for step, value in zip((10, 20), values, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["condition", *COLUMNS])
    found = m.formed(table, {"held": "held, 1"}, SPLITS)["OOD"].loc["held, 1"]
    assert found["no formula"] == pytest.approx(80) and found["right"] == pytest.approx(100), "at the end"


def test_corners_are_compared_at_equal_accuracy_too():
    ends = {"plain SFT": (0.8, 0.3), "held": (0.8, 0.3), "kept": (0.7, 0.6)}
    along = pd.concat([path(n, s, (0.6, 0.7), end) for n, end in ends.items() for s in range(3)])
    rule = np.where((along["mitigation"] == "held") & (along["step"] == 200), 0.6, 0.5)
    found = m.by_corner(along.assign(new_rule=rule), "plain SFT", SPLITS)
    assert found["mitigation"].unique().tolist() == ["kept", "held"], "the one that keeps most first"
    gains = {(r.mitigation, r.split): r.gain.value for r in found.itertuples()}
    assert gains["held", "id"] == 0 and gains["held", "new_rule"] == pytest.approx(0.1)
    assert gains["kept", "id"] == pytest.approx(-0.1) and gains["kept", "ood"] == pytest.approx(0.6 - 0.5)
    table = m.corner_table(along.assign(new_rule=rule), "plain SFT", SPLITS, {"held": 1.25})
    assert table.loc["kept", "OOD, at the end"].startswith("+30.0")
    assert table.index.tolist() == ["kept", "held"] and table["time of a step"].tolist() == ["not measured", "1.2"]
    assert table.loc["held", "new rule, equal ID"].startswith("+10.0")
    assert table.loc["kept", "ID, at the end"].startswith("-10.0")
    text = m.advice(along, "plain SFT", SPLITS, {})
    assert "1 of 2 mitigations are shown to keep more" in text and "by **kept**: +10.0" in text


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
    plan = Plan("mitigations")
    searched, reported = (set(plan.seeds(phase)) for phase in ("search", "mitigations"))
    assert not searched & reported
    for phase in plan.phases:
        assert all(plan.conditions[cell.condition]["why"] for cell in plan.cells(phase))
    assert plan.mitigations("search")["name"].is_unique
    assert plan.mitigations("search")["mitigation"].iloc[0] == "plain SFT"
    report = (CHECKOUT / "docs" / "mitigations.md").read_text(encoding="utf-8")
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
    plan = Plan("mitigations")
    rows = made_up(phase="mitigations", seeds=[20, 21], plan=plan)
    about = plan.mitigations("mitigations")
    along = m.curves(rows, dict(about["name"]), SPLITS)
    found = strengths(points := forgetting(rows, SPLITS), SPLITS)
    plain = rows[rows["condition"] == "plain"]
    mitigation_of = dict(about[["name", "mitigation"]].itertuples(index=False))
    for figure in (
        plots.mitigations.frontiers(along, mitigation_of, "plain SFT", SPLITS),
        plots.mitigations.kept(m.by_corner(along, "plain SFT", SPLITS), SPLITS, "plain SFT"),
        plots.mitigations.predictors(found, SPLITS.headline),
        plots.mitigations.lost_over(points, found, SPLITS),
        plots.mitigations.same_start(same_start.paths(plain, 8, SPLITS), SPLITS),
        plots.mitigations.hidden_states(hidden_states(plain, 8)),
        plots.mitigations.regrets({"here": by_rule(regrets(selected_from(rows, SPLITS)))}, SPLITS),
    ):
        assert smallest_text(figure) >= 8 and texts_on_texts(figure) == []
        plt.close(figure)
    assert "KL(base || model)" in advice(found, SPLITS.headline), "of which the made-up losses are made"
