"""The rules of the claims, on made-up measurements of which the verdict is known."""

import json

import numpy as np
import pandas as pd
import pytest

from oodlib.analysis import Evidence, claims
from oodlib.analysis.claims import VERDICTS, as_json, in_unit, judge, scorecard
from oodlib.stages import NULLS

HANDS = 400
STEPS = (0, 10, 20, 100, 200)  # peak at 20 of 200 unless said otherwise
GOOD = {
    # OOD accuracy by SFT step, and what RL and the baselines make of the starts
    "ood": {0: 0.0, 10: 0.5, 20: 0.6, 100: 0.3, 200: 0.1},
    "id": {0: 0.0, 10: 0.5, 20: 0.5, 100: 0.7, 200: 0.9},
    "malformed": {0: 1.0, 10: 0.1, 20: 0.0, 100: 0.0, 200: 0.0},
    "loss_id": {0: 1.0, 10: 0.5, 20: 0.4, 100: 0.3, 200: 0.2},
    "loss_ood": {0: 1.0, 10: 0.5, 20: 0.4, 100: 0.4, 200: 0.4},
    "rl": {10: 0.5, 100: 0.55, 200: 0.1},
    "sft_continued": {10: 0.5, 100: 0.3, 200: 0.02},
    "rejection_sampling": {10: 0.5, 100: 0.35, 200: 0.02},
    "values top 1": 0.1,
    "vectors top 1": 0.5,
    "random top 1 draw 0": 0.0,
    "noise top 1 draw 0": 0.1,
    "signs top 1 draw 0": 0.05,
    "skewness": {10: 3.0, 100: 0.0, 200: 3.0},
    "angle": {"rl": 0.1, "sft_continued": 0.3},
    "value_change": 0.01,
    "rl_value_change": 0.01,
    "training": [1 - 0.004 * i for i in range(200)],
}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """These verdicts are clear: a tenth of the bootstrap's resamples decides them as well."""
    monkeypatch.setattr("oodlib.analysis.stats.RESAMPLES", 200)


def made_up(seeds=(1,), jitter=0.0, **changes):
    """Evidence with these accuracies: the first share of the hands (in another order a seed) is right."""
    facts = {**GOOD, **changes}
    hands, rollouts, rotation = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)

        def evaluation(stage, arm, start, step, split, right, malformed=0.0, loss=np.nan, seed=seed, rng=rng):
            share = np.clip(right + jitter * rng.standard_normal(), 0, 1)
            order = np.random.default_rng(99).permutation(HANDS)  # hands of like difficulty fall together
            outcome = np.where(order < share * HANDS, "correct", "wrong_value")
            outcome = np.where(order >= HANDS * (1 - malformed), "malformed", outcome)
            noise = 1 + 0.3 * rng.standard_normal(HANDS)
            names = {"stage": stage, "arm": arm, "from_step": start, "step": step, "seed": seed, "split": split}
            frame = pd.DataFrame(
                {"problem": [f"h{i:03d}" for i in range(HANDS)], "outcome": outcome, "loss": loss * noise}
            )
            hands.append(frame.assign(**names))

        for step in STEPS:
            for split in ("id", "ood"):
                values = facts[split][step], facts["malformed"][step], facts[f"loss_{split}"][step]
                evaluation("sft", "sft", 0, step, split, *values)
        for arm in ("rl", "sft_continued", "rejection_sampling"):
            for start, right in facts[arm].items():
                evaluation("rl", arm, start, 40, "ood", right)
        peak = max(STEPS, key=lambda t: facts["ood"][t])
        for name in (
            "values top 1",
            "vectors top 1",
            "random top 1 draw 0",
            "noise top 1 draw 0",
            "signs top 1 draw 0",
        ):
            evaluation("surgery", name, peak, 200, "ood", facts[name])
        for start, skewness in facts["skewness"].items():
            draws = rng.exponential(1, (50, 8)) ** (skewness / 2 if skewness else 0) * rng.choice([-1, 1], (50, 8)) ** (
                skewness == 0
            )
            frame = pd.DataFrame({"group": np.repeat(np.arange(50), 8), "advantage": draws.ravel()})
            rollouts.append(frame.assign(from_step=start, seed=seed))
        for layer in range(8):
            for arm, angle in facts["angle"].items():
                rotation.append((seed, layer, "q_proj", "angle_left", arm, 100, 40, angle * (1 + 0.05 * layer)))
            rotation.append((seed, layer, "q_proj", "value_change", "sft", 0, 200, facts["value_change"]))
            rotation.append((seed, layer, "q_proj", "value_change", "rl", 100, 40, facts["rl_value_change"]))
    columns = ["seed", "layer", "module", "metric", "arm", "from_step", "step", "value"]
    training = pd.DataFrame({"seed": seed, "step": range(1, 201), "value": facts["training"]} for seed in seeds)
    training = training.explode(["step", "value"]).astype({"value": float, "step": int})
    return Evidence(pd.concat(hands), pd.concat(rollouts), pd.DataFrame(rotation, columns=columns), training)


def verdict(name, **changes):
    return judge(name, made_up(**changes)).verdict


def test_all_hold_where_all_is_as_the_paper_says():
    card = scorecard(made_up())
    assert {c.claim: c.verdict for c in card} == dict.fromkeys(claims.names(), "supported")
    for claim in card:
        assert claim.ci_low <= claim.estimate <= claim.ci_high
        assert claim.sentence and claim.title and claim.n > 0


def test_over_seeds_the_interval_is_over_seeds():
    card = scorecard(made_up(seeds=(1, 2, 3, 4, 5), jitter=0.01))
    by_name = {c.claim: c for c in card}
    assert by_name["C1"].n == 5 and by_name["C1"].verdict == "supported"
    assert by_name["C8"].n == 5 and by_name["C8"].verdict == "supported"


FLAT = dict.fromkeys(STEPS, 0.3)
RISING = {0: 0.0, 10: 0.1, 20: 0.2, 100: 0.3, 200: 0.5}

REFUTED = {
    "C1": [
        {"id": {0: 0.0, 10: 0.9, 20: 0.9, 100: 0.7, 200: 0.5}},
        {"ood": RISING},
        {"ood": FLAT},
        {"ood": {0: 0.0, 10: 0.1, 20: 0.2, 100: 0.6, 200: 0.1}},
    ],
    "C2": [{"loss_ood": {0: 1.0, 10: 0.5, 20: 0.4, 100: 0.6, 200: 0.9}}],
    "C3": [{"malformed": {0: 1.0, 10: 0.9, 20: 0.4, 100: 0.2, 200: 0.0}}, {"malformed": dict.fromkeys(STEPS, 0.05)}],
    "C4": [
        {"sft_continued": {10: 0.5, 100: 0.6, 200: 0.3}},
        {"rejection_sampling": {10: 0.5, 100: 0.6, 200: 0.3}},
        {"rl": {10: 0.1, 100: 0.05, 200: 0.0}},
        {"rl": {10: 0.9, 100: 0.9, 200: 0.9}},
    ],
    "C5": [
        {"rl": {10: 0.7, 100: 0.4, 200: 0.6}},
        {"rl": {10: 0.5, 100: 0.1, 200: 0.1}},
        {"rl": {10: 0.1, 100: 0.35, 200: 0.3}},
    ],
    "C6": [{"skewness": {10: 0.0, 100: 3.0, 200: 0.0}}],
    "C7": [{"values top 1": 0.5}, {"value_change": 0.2}, {"rl_value_change": 0.2}],
    "C8": [
        {"vectors top 1": 0.15},
        {"random top 1 draw 0": 0.6},
        {"noise top 1 draw 0": 0.6},
        {"signs top 1 draw 0": 0.6},
    ],
    "C9": [{"angle": {"rl": 0.3, "sft_continued": 0.1}}],
}
UNDECIDED = {
    "C1": [{"ood": {0: 0.0, 10: 0.3, 20: 0.33, 100: 0.3, 200: 0.31}, "seeds": (1, 2, 3), "jitter": 0.03}],
    "C2": [{"loss_ood": {0: 1.0, 10: 0.5, 20: 0.4, 100: 0.4, 200: 0.42}}],
    "C3": [{"malformed": {0: 1.0, 10: 0.1, 20: 0.1, 100: 0.0, 200: 0.0}}],
    "C4": [{"sft_continued": {10: 0.5, 100: 0.54, 200: 0.1}, "seeds": (1, 2, 3, 4), "jitter": 0.05}],
    "C5": [{"rl": {10: 0.5, 100: 0.31, 200: 0.1}, "seeds": (1, 2, 3, 4), "jitter": 0.05}],
    "C7": [{"values top 1": 0.15}],
    "C8": [{"vectors top 1": 0.35}],
    "C9": [{"angle": {"rl": 0.1, "sft_continued": 0.1}}],
}


@pytest.mark.parametrize(("name", "changes"), [(n, c) for n, cs in REFUTED.items() for c in cs])
def test_not_supported(name, changes):
    assert verdict(name, **changes) == "not supported"


@pytest.mark.parametrize(("name", "changes"), [(n, c) for n, cs in UNDECIDED.items() for c in cs])
def test_inconclusive(name, changes):
    assert verdict(name, **changes) == "inconclusive"


def test_c6_without_a_start_inside_the_window_is_inconclusive():
    facts = {arm: {10: 0.5, 200: 0.1} for arm in ("rl", "sft_continued", "rejection_sampling")}
    evidence = made_up(skewness={10: 3.0, 200: 3.0}, **facts)
    for name in ("C5", "C6"):
        claim = judge(name, evidence)
        assert (
            claim.verdict == "inconclusive" and "no inside RL start" in claim.sentence
        ) or "window" in claim.sentence


def test_c1_is_not_fooled_by_picking_the_best_of_many_noisy_checkpoints():
    """Accuracies that differ by chance alone: the largest is no peak. A naive difference would be above 0."""
    rng = np.random.default_rng(3)
    steps = list(range(0, 400, 10))
    frames = []
    for step in steps:
        right = rng.random(HANDS) < 0.3
        frame = pd.DataFrame({"problem": [f"h{i:03d}" for i in range(HANDS)], "loss": 1.0})
        frame["outcome"] = np.where(right, "correct", "wrong_value")
        for split in ("id", "ood"):
            frames.append(frame.assign(stage="sft", arm="sft", from_step=0, step=step, seed=1, split=split))
    none = pd.DataFrame({"seed": [], "from_step": []})
    evidence = Evidence(pd.concat(frames), none, none, none)
    naive = max(f["outcome"].eq("correct").mean() for f in frames) - frames[-1]["outcome"].eq("correct").mean()
    claim = judge("C1", evidence)
    assert naive > 0.04 and abs(claim.estimate) < naive and claim.verdict != "supported"


def test_numbers_are_shown_in_their_unit():
    assert in_unit("points", 0.29355, 0.2571, 0.33) == "+29.4 [+25.7, +33.0] points"
    assert in_unit("%", -0.039) == "-4" and in_unit("", 0.2859) == "+0.29"
    assert in_unit("times", 1.39, 1.287, 1.501) == "1.39 [1.29, 1.50] times"
    assert in_unit("points", None) == in_unit("points", float("nan"), 0.0, 0.0) == ""


def test_the_scorecard_as_json_has_the_agreed_fields():
    rows = json.loads(as_json(scorecard(made_up())))
    assert [r["claim"] for r in rows] == [f"C{i}" for i in range(1, 10)]
    for row in rows:
        assert {"claim", "verdict", "estimate", "ci_low", "ci_high", "n", "paper"} <= set(row)
        assert row["verdict"] in VERDICTS


def test_a_claim_from_elsewhere_stands_below_the_others(tmp_path, monkeypatch):
    """One new file, that assigns a rule to a name; here in a folder of one's own."""
    (tmp_path / "my_claims.py").write_text(
        "from oodlib.analysis.claims import Finding, Rule, decide\n\n\n"
        "def rule(e):\n"
        '    """Supported: ID accuracy rises."""\n'
        "    rise = e.measure(lambda s, fall: s[e.sft(e.end)] - s[e.sft(0)], split='id')\n"
        "    verdict = decide(rise.low > 0, rise.high <= 0)\n"
        "    return Finding(verdict, rise, None, 'ID(end) - ID(0)', 'It rises.')\n\n\n"
        "CLAIM = Rule('C12', 'SFT learns', 'points', rule)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    *others, last = scorecard(made_up(), extra=["my_claims:CLAIM"])
    assert [c.claim for c in others] == [f"C{i}" for i in range(1, 10)]
    assert (last.claim, last.title, last.verdict) == ("C12", "SFT learns", "supported")
    assert last.estimate == pytest.approx(0.9) and claims.get("my_claims:CLAIM").text == "Supported: ID accuracy rises."


def test_an_unknown_claim_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"'c77'.*c1, c2.*module:object"):
        judge("C77", made_up())


def test_every_claim_has_a_title_a_unit_and_its_rule_in_words():
    for rule in map(claims.get, claims.names()):
        assert rule.title and not rule.title.endswith(".") and rule.unit in claims.FORMS
        assert "Estimate:" in rule.text and "Supported:" in rule.text and "Not supported:" in rule.text


@pytest.mark.parametrize("gone", ["rl", "sft_continued", "surgery", "null"])
def test_what_was_not_measured_is_inconclusive_not_an_error(gone):
    evidence = made_up()
    hands, rotation = evidence.hands, evidence.rotation
    start = {"surgery": ("values", "vectors", *NULLS), "null": NULLS}.get(gone, (gone,))
    keep = ~hands["arm"].str.startswith(start)
    less = Evidence(hands[keep], evidence.rollouts, rotation[rotation["arm"] != gone], evidence.training)
    affected = {"rl": "C4", "sft_continued": "C4", "surgery": "C7", "null": "C8"}[gone]
    card = {c.claim: c for c in scorecard(less)}
    assert card[affected].verdict == "inconclusive" and "does not tell" in card[affected].sentence
    assert card["C1"].verdict == "supported"
    json.loads(as_json(scorecard(less)))
