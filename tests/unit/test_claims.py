"""The rules of the claims, on made-up measurements of which the verdict is known."""

import json
from functools import cache

import numpy as np
import pandas as pd
import pytest

from oodlib import plots
from oodlib.analysis import Evidence, claims
from oodlib.analysis.claims import (
    TESTS,
    VERDICTS,
    as_json,
    as_markdown,
    beside,
    from_json,
    in_unit,
    judge,
    scorecard,
    sentence,
)
from oodlib.io import COLUMNS
from oodlib.results import judged_by
from oodlib.stages import NULLS, edit_name
from oodlib.tasks import Split, Splits

HANDS = 200
STEPS = (0, 10, 20, 60, 100, 150, 200)  # peak at 20 of 200 unless said otherwise
STARTS = (10, 20, 60, 100, 150, 200)  # two early, three inside the window, the end
SPLITS = Splits(
    trained=Split("taught", "ID"),
    others=(Split("other", "other rule", ("rule",)), Split("larger", "larger numbers", ("numbers",))),
    headline=Split("both", "OOD", ("rule", "numbers")),
)
ONLY_TWO = Splits(SPLITS.trained, SPLITS.headline)


def by_step(*values):
    return dict(zip(STEPS, values, strict=True))


def by_start(*values):
    return dict(zip(STARTS, values, strict=True))


EDITS = {  # OOD accuracy after each; the peak has 0.6, the end 0.1
    "values, every matrix": 0.1,
    "values, every matrix, top 0.25": 0.1,
    "vectors, every matrix, top 0.25": 0.5,
    "whole, layers 2 and embeddings": 0.55,
    "whole, layers 2": 0.3,
    "whole, embeddings": 0.15,
    "noise for whole, embeddings, draw 0": 0.1,
    "whole, numbers": 0.12,
    "vectors, projections": 0.5,
    "vectors, projections, top 0.25": 0.3,
    "random for vectors, projections, draw 0": 0.0,
    "signs for vectors, projections, draw 0": 0.05,
    "noise for vectors, projections, draw 0": 0.1,
}
MITIGATIONS = {"plain SFT": (0.9, 0.1), "RPSFT": (0.85, 0.4), "lower rate": (0.85, 0.3), "cosine": (0.9, 0.2)}
GOOD = {
    "both": by_step(0.0, 0.5, 0.6, 0.4, 0.3, 0.2, 0.1),
    "taught": by_step(0.0, 0.45, 0.5, 0.6, 0.7, 0.8, 0.85),
    "other": by_step(0.0, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1),
    "larger": by_step(0.0, 0.5, 0.5, 0.4, 0.3, 0.2, 0.15),
    "malformed": by_step(1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0),
    "loss_taught": by_step(1.0, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2),
    "loss_both": by_step(1.0, 0.5, 0.4, 0.39, 0.38, 0.37, 0.36),
    "old_both": by_step(0.0, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
    "old_other": by_step(0.0, 0.0, 0.05, 0.1, 0.2, 0.3, 0.5),
    "rl": by_start(0.5, 0.6, 0.55, 0.55, 0.5, 0.1),
    "sft_continued": by_start(0.5, 0.6, 0.45, 0.35, 0.25, 0.1),
    "rejection_sampling": by_start(0.5, 0.6, 0.4, 0.35, 0.25, 0.02),
    "averaging": by_start(0.5, 0.6, 0.4, 0.3, 0.2, 0.1),
    "id_gain": {"rl": 0.1, "sft_continued": 0.1},
    "edits": EDITS,
    "skewness": by_start(3.0, 2.5, 0.0, 0.0, 0.0, 2.0),
    "angle": {"sft": 0.4, "rl": 0.1, "sft_continued": 0.3},
    "value_change": 0.01,
    "rl_value_change": 0.01,
    "training": [1 - 0.004 * i for i in range(200)],
    "mitigations": MITIGATIONS,
    "drift": {"kl_from_base": 0.01, "angle": 0.1, "weight_change": 0.1},
    "same_start": {"rl": 0.6, "rejection_sampling": 0.4, "sft_nearest": 0.4, "sft_continued": 0.4, "sft": 0.2},
}
FIVE = {"seeds": (1, 2, 3, 4, 5), "jitter": 0.01}
NOISY = {"seeds": (1, 2, 3, 4), "jitter": 0.06}


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """These verdicts are clear: a twentieth of the resamples decides them as well."""
    monkeypatch.setattr("oodlib.analysis.stats.RESAMPLES", 100)


def made_up(seeds=(1,), jitter=0.0, splits=SPLITS, arms=None, starts=STARTS, **changes):
    """Evidence with these accuracies: the first share of the hands (in one order for all) is right."""
    facts = {**GOOD, **changes}
    facts["edits"] = {**EDITS, **changes.get("edits", {})}
    arms = ("rl", "sft_continued", "rejection_sampling", "averaging") if arms is None else arms
    hands = pd.concat([_hands(facts, seed, jitter, splits, arms, starts) for seed in seeds])
    draws = [_advantages(facts["skewness"][t], seed).assign(from_step=t, seed=seed) for seed in seeds for t in starts]
    training = pd.DataFrame({"seed": seed, "step": range(1, 201), "value": facts["training"]} for seed in seeds)
    training = training.explode(["step", "value"]).astype({"value": float, "step": int})
    rng = np.random.default_rng(0)  # from a common peak every mitigation goes straight to its own end
    rows = [
        (name, seed, step, *accuracies)
        for name, (learnt, kept) in facts["mitigations"].items()
        for seed in range(4)
        for step, accuracies in ((20, (0.5, 0.6)), (200, (learnt, kept + facts.get("spread", 0.01) * rng.normal())))
    ]
    mitigations = pd.DataFrame(rows, columns=["mitigation", "seed", "step", "trained", "headline"])
    noise = facts.get("spread", 0.01)
    paths = [
        (arm, seed, step, *accuracies)
        for arm, kept in sorted(facts["same_start"].items(), key=lambda item: item[0] != "sft")
        for seed in range(4)
        for step, accuracies in ((8, (0.5, 0.6)), (88, (0.7, kept + noise * rng.normal())))
    ]
    same_start = pd.DataFrame(paths, columns=mitigations.columns)
    of_sweeps = mitigations, _drift(facts["drift"], splits), same_start
    return Evidence(hands, pd.concat(draws), _rotation(facts, seeds, arms), training, splits, *of_sweeps)


def _drift(measures, splits):
    """Twenty recipes a seed, whose loss is the square of each measure with so much noise."""
    rng = np.random.default_rng(0)
    lost = rng.random((80, 1)) ** 2
    numbers = np.sqrt(lost) + rng.normal(size=(80, len(measures))) * list(measures.values())
    table = pd.DataFrame(numbers, columns=list(measures)).assign(end=True, seed=np.repeat(range(4), 20))
    return table.assign(**{f"lost_{splits.headline.name}": lost}) if measures else pd.DataFrame()


def _hands(facts, seed, jitter, splits, arms, starts):
    rows = []
    for split in splits:
        accuracy, old = facts[split.name], facts.get(f"old_{split.name}", by_step(*[0.0] * 7))
        loss = facts.get(f"loss_{split.name}", facts["loss_both"])
        for t in STEPS:
            rows.append(("sft", "sft", 0, t, split.name, accuracy[t], facts["malformed"][t], loss[t], old[t]))
        for arm, start in ((arm, start) for arm in arms for start in starts):
            right = accuracy[start] + facts["id_gain"].get(arm, 0) if split == splits.trained else facts[arm][start]
            rows.append(("rl", arm, start, 40, split.name, right, 0.0, np.nan, 0.0))
        peak = max(STEPS, key=lambda t: facts[splits.headline.name][t])
        for name, right in facts["edits"].items():
            right = right if split == splits.headline else accuracy[200]
            rows.append(("surgery", name, peak, 200, split.name, right, 0.0, np.nan, 0.0))
    keys = ["stage", "arm", "from_step", "step", "split", "right", "malformed", "loss", "old"]
    table, rng = pd.DataFrame(rows, columns=keys), np.random.default_rng(seed)
    order = np.random.default_rng(99).permutation(HANDS)  # hands of like difficulty fall together
    right = np.clip(table["right"] + jitter * rng.standard_normal(len(table)), 0, 1).to_numpy()[:, None]
    outcome = np.where(order < right * HANDS, "correct", "wrong_value")
    outcome[order >= HANDS * (1 - table["malformed"].to_numpy()[:, None])] = "malformed"
    every = table.loc[table.index.repeat(HANDS), keys[:5]].reset_index(drop=True)
    losses = table["loss"].to_numpy()[:, None] * (1 + 0.3 * rng.standard_normal((len(table), HANDS)))
    old = order >= HANDS * (1 - table["old"].to_numpy()[:, None])
    problems = np.tile([f"h{i * 7 % HANDS}" for i in range(HANDS)], len(table))  # not in alphabetical order
    return every.assign(seed=seed, problem=problems, outcome=outcome.ravel(), loss=losses.ravel(), old_rule=old.ravel())


def _advantages(skewness, seed):
    rng = np.random.default_rng(seed)
    draws = rng.exponential(1, (50, 8)) ** (skewness / 2) if skewness else rng.choice([-1.0, 1.0], (50, 8))
    return pd.DataFrame({"group": np.repeat(np.arange(50), 8), "advantage": draws.ravel()})


def _rotation(facts, seeds, arms):
    rows = []
    for seed, layer in ((seed, layer) for seed in seeds for layer in range(8)):
        place = (seed, layer, "q_proj")
        for arm, angle in facts["angle"].items():
            if arm == "sft" or arm in arms:
                pair = (0, 200) if arm == "sft" else (100, 40)
                rows.append((*place, "angle_left", arm, *pair, angle * (1 + 0.05 * layer)))
        rows.append((*place, "value_change", "sft", 0, 200, facts["value_change"]))
        if "rl" in arms:
            rows.append((*place, "value_change", "rl", 100, 40, facts["rl_value_change"]))
    return pd.DataFrame(rows, columns=["seed", "layer", "module", "metric", "arm", "from_step", "step", "value"])


def verdict(name, test, **changes):
    return judge(name, made_up(**changes), test).verdict


def test_all_hold_where_all_is_as_the_papers_say():
    card = scorecard(made_up(**FIVE))
    assert {(c.claim, c.test): c.verdict for c in card} == {(c.claim, c.test): "supported" for c in card}
    assert len(card) == 24 and {c.claim for c in card} == {f"C{i}" for i in range(1, 14)}
    for claim in card:
        assert claim.ci_low <= claim.estimate <= claim.ci_high
        assert claim.sentence and claim.title and claim.n > 0 and claim.version.startswith("arXiv:")
    assert {c.n for c in card if c.claim in ("C1", "C8", "C9")} == {5}


@cache
def one_seed():
    return scorecard(made_up())


def test_one_seed_is_resampled_over_its_problems():
    card = {(c.claim, c.test): c for c in one_seed()}
    others = {key: c for key, c in card.items() if key != ("C6", "baselines")}  # six points tell too little
    assert {key: c.verdict for key, c in others.items()} == dict.fromkeys(others, "supported")
    assert card["C1", "paper"].n == HANDS and card["C9", "paper"].n == 8


FLAT, RISING = by_step(*[0.3] * 7), by_step(0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
BETTER = by_start(0.5, 0.6, 0.7, 0.7, 0.7, 0.1)  # a baseline that heals more than RL, in the same window
REFUTED = {
    ("C1", "paper"): [
        {"taught": by_step(0.0, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5)},
        {"both": RISING},
        {"both": FLAT},
        {"both": by_step(0.0, 0.1, 0.2, 0.3, 0.6, 0.3, 0.1)},
    ],
    ("C1", "baselines"): [{"other": RISING}, {"other": by_step(0.0, 0.5, 0.5, 0.45, 0.4, 0.4, 0.4)}],
    ("C2", "paper"): [
        {"loss_taught": by_step(1.0, 0.5, 0.4, 0.5, 0.6, 0.7, 0.9)},
        {"training": [1 + 0.01 * i for i in range(200)]},
    ],
    ("C2", "baselines"): [{"loss_both": by_step(1.0, 0.5, 0.4, 0.5, 0.6, 0.7, 0.9)}],
    ("C3", "paper"): [
        {"malformed": by_step(1.0, 0.9, 0.4, 0.2, 0.1, 0.0, 0.0)},
        {"malformed": by_step(*[0.05] * 7)},
    ],
    ("C4", "paper"): [{"rl": by_start(*[0.05] * 6)}, {"rl": by_start(*[0.9] * 6)}],
    ("C4", "baselines"): [{"rejection_sampling": BETTER}],
    ("C5", "paper"): [
        {"rl": by_start(0.7, 0.7, 0.6, 0.5, 0.4, 0.4)},
        {"rl": by_start(0.5, 0.6, 0.3, 0.2, 0.1, 0.1)},
        {"rl": by_start(0.1, 0.2, 0.4, 0.35, 0.25, 0.4)},
    ],
    ("C5", "baselines"): [{"sft_continued": BETTER}, {"averaging": BETTER}],
    ("C6", "paper"): [{"skewness": by_start(0.0, 0.0, 3.0, 3.0, 3.0, 0.0)}],
    ("C6", "baselines"): [{"skewness": by_start(0.0, 0.0, 2.5, 2.8, 3.0, 0.0), **FIVE}],
    ("C7", "paper"): [{"edits": {"values, every matrix": 0.5}}, {"value_change": 0.2}, {"rl_value_change": 0.2}],
    ("C8", "paper"): [
        {"edits": {"whole, layers 2 and embeddings": 0.15}},
        {"edits": {"vectors, every matrix, top 0.25": 0.3}},
        {"both": by_step(0.0, 0.5, 0.6, 0.55, 0.55, 0.55, 0.5), "edits": {"whole, layers 2 and embeddings": 0.45}},
    ],
    ("C8", "baselines"): [
        {"edits": {"vectors, projections": 0.12, "whole, embeddings": 0.1}},
        {"edits": {"whole, embeddings": 0.6}},
        *({"edits": {edit_name(null, "projections", draw=0, of="vectors"): 0.6}} for null in NULLS),
    ],
    ("C9", "paper"): [{"angle": {**GOOD["angle"], "sft": 0.05}}],
    ("C9", "baselines"): [
        {"angle": {"sft": 0.4, "rl": 0.3, "sft_continued": 0.1}},
        {"angle": {"sft": 0.4, "rl": 0.1, "sft_continued": 0.15}, "id_gain": {"rl": 0.03, "sft_continued": 0.1}},
    ],
    ("C10", "paper"): [{"mitigations": {**MITIGATIONS, "RPSFT": (0.9, 0.02)}}],
    ("C10", "baselines"): [
        {"mitigations": {**MITIGATIONS, "lower rate": (0.85, 0.6)}},
        {"mitigations": {**MITIGATIONS, "averaging": (0.95, 0.6)}},
        {"mitigations": {**MITIGATIONS, "cosine": (0.7, 0.58)}},  # learns less, and keeps more with as much learnt
    ],
    ("C11", "paper"): [{"old_both": by_step(*[0.0] * 7)}, {"old_both": by_step(*[0.4] * 7)}],
    ("C11", "baselines"): [{"old_other": by_step(*[0.0] * 7)}, {"old_both": by_step(*[0.4] * 7)}],
    ("C12", "paper"): [{"drift": {"kl_from_base": 3.0, "angle": 0.1}}],
    ("C12", "baselines"): [{"drift": {"kl_from_base": 0.3, "angle": 0.01}}],
    ("C13", "paper"): [
        {"same_start": {"rl": 0.4, "sft": 0.2, "sft_continued": 0.5}},
        {"same_start": {"rl": 0.4, "reinforce": 0.1, "sft": 0.2}},
    ],
    ("C13", "baselines"): [{"same_start": {"rl": 0.4, "sft": 0.2, "sft_nearest": 0.5}}],
}
UNDECIDED = {
    ("C1", "paper"): [{"both": by_step(0.0, 0.3, 0.33, 0.3, 0.3, 0.3, 0.31), "seeds": (1, 2, 3), "jitter": 0.03}],
    ("C1", "baselines"): [{"other": by_step(0.0, 0.5, 0.5, 0.4, 0.3, 0.25, 0.2), "seeds": (1, 2, 3), "jitter": 0.06}],
    ("C2", "paper"): [{"loss_taught": by_step(1.0, 0.5, 0.4, 0.4, 0.4, 0.4, 0.42)}],
    ("C2", "baselines"): [{"loss_both": by_step(1.0, 0.5, 0.4, 0.4, 0.4, 0.4, 0.42)}],
    ("C3", "paper"): [{"malformed": by_step(1.0, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0)}],
    ("C4", "paper"): [{"rl": by_start(0.5, 0.6, 0.41, 0.31, 0.21, 0.1), **NOISY}],
    ("C4", "baselines"): [{"rejection_sampling": by_start(0.5, 0.6, 0.54, 0.54, 0.49, 0.1), **NOISY}],
    ("C5", "paper"): [{"rl": by_start(0.5, 0.6, 0.41, 0.31, 0.21, 0.1), **NOISY}],
    ("C5", "baselines"): [{"averaging": by_start(0.5, 0.6, 0.54, 0.54, 0.49, 0.1), **NOISY}],
    ("C6", "paper"): [{"skewness": by_start(*[2.0] * 6)}],
    ("C6", "baselines"): [{}],
    ("C7", "paper"): [{"edits": {"values, every matrix": 0.15}}],
    ("C8", "paper"): [{"edits": {"vectors, every matrix, top 0.25": 0.42}}],
    ("C8", "baselines"): [{"edits": {"whole, embeddings": 0.49}, **NOISY}],
    ("C9", "paper"): [{"angle": {**GOOD["angle"], "sft": 0.1}}],
    ("C9", "baselines"): [{"angle": {**GOOD["angle"], "sft_continued": 0.1}}],
    ("C10", "paper"): [{"mitigations": {**MITIGATIONS, "RPSFT": (0.9, 0.1)}, "spread": 0.05}],
    ("C10", "baselines"): [{"mitigations": {**MITIGATIONS, "lower rate": (0.85, 0.4)}, "spread": 0.05}],
    ("C11", "paper"): [{"old_both": by_step(0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.1)}],
    ("C11", "baselines"): [{"old_other": by_step(0.0, 0.0, 0.3, 0.3, 0.3, 0.3, 0.305)}],
    ("C12", "paper"): [{"drift": {"kl_from_base": 0.25, "angle": 0.1}}],
    ("C12", "baselines"): [{"drift": {"kl_from_base": 0.1, "angle": 0.1}}],
    ("C13", "paper"): [{"same_start": {"rl": 0.4, "sft": 0.2, "sft_continued": 0.4}, "spread": 0.05}],
    ("C13", "baselines"): [{"same_start": {"rl": 0.4, "sft_nearest": 0.4}, "spread": 0.05}],
}
NO_RL = {"arms": ("sft_continued", "rejection_sampling"), "angle": {"sft": 0.4, "sft_continued": 0.3}}
ENDS = {"starts": (10, 200)}  # none inside the window
MISSING = {
    ("C1", "baselines"): ({"splits": ONLY_TWO}, "no split that changes the rule alone"),
    ("C2", "baselines"): ({"loss_both": by_step(*[np.nan] * 7)}, "no loss on the split"),
    ("C4", "paper"): (NO_RL, "no evaluation"),
    ("C4", "baselines"): ({"arms": ("rl", "sft_continued")}, "no baseline of equal information"),
    ("C5", "paper"): (ENDS, "no inside RL start"),
    ("C5", "baselines"): ({"arms": ("rl",)}, "no baseline"),
    ("C6", "paper"): (ENDS, "no inside RL start"),
    ("C6", "baselines"): (ENDS, "2 starts and seeds"),
    ("C7", "paper"): ({"arms": ()}, "no spectra"),
    ("C8", "paper"): ({"both": by_step(0.0, *[0.3] * 6)}, "nothing to recover"),
    ("C9", "paper"): (NO_RL, "no angles"),
    ("C9", "baselines"): ({"id_gain": {"rl": 0.1, "sft_continued": -0.1}}, "gains no ID accuracy"),
    ("C10", "paper"): ({"mitigations": {}}, "measured in the sweep"),
    ("C10", "baselines"): ({"mitigations": {"RPSFT": (0.9, 0.4), "plain SFT": (0.9, 0.1)}}, "none was measured"),
    ("C11", "baselines"): ({"splits": ONLY_TWO}, "no split that changes the rule alone"),
    ("C12", "paper"): ({"drift": {}}, "measured in the sweep"),
    ("C12", "baselines"): ({"drift": {"kl_from_base": 0.1}}, "no other measure"),
    ("C13", "paper"): ({"same_start": {}}, "measured in the sweep"),
    ("C13", "baselines"): ({"same_start": {"rl": 0.4, "sft": 0.2}}, "learn more than the start knows"),
}


def cases(table):
    return [(*key, changes) for key, several in table.items() for changes in several]


@pytest.mark.parametrize(("name", "test", "changes"), cases(REFUTED))
def test_not_supported(name, test, changes):
    assert verdict(name, test, **changes) == "not supported"


@pytest.mark.parametrize(("name", "test", "changes"), cases(UNDECIDED))
def test_inconclusive(name, test, changes):
    assert verdict(name, test, **changes) == "inconclusive"


@pytest.mark.parametrize(("name", "test"), MISSING)
def test_what_was_not_measured_is_said(name, test):
    changes, words = MISSING[name, test]
    claim = judge(name, made_up(**changes), test)
    assert claim.verdict == "inconclusive" and "does not tell" in claim.sentence and words in claim.sentence
    assert as_json([claim]).count("null") == 4


def test_what_is_not_in_the_tables_is_missing_too():
    whole = made_up()
    rest = whole.rollouts, whole.rotation, whole.training, SPLITS
    no_measure = Evidence(whole.hands.drop(columns="old_rule"), *rest)
    assert "no old_rule" in judge("C11", no_measure).sentence
    named = Evidence(whole.hands.assign(old_numbers=whole.hands["old_rule"]), *rest)
    assert "name the old numbers" in judge("C11", named, "baselines").quantity
    assert judge("C11", named, "baselines").estimate == judge("C11", whole, "baselines").estimate
    no_start = Evidence(whole.hands[whole.hands["step"] != 0], *rest)
    assert "no evaluation ('sft', 'sft', 0, 0)" in judge("C3", no_start).sentence
    no_null = Evidence(whole.hands[~whole.hands["arm"].str.startswith("signs")], *rest)
    assert "null edits" in judge("C8", no_null, "baselines").sentence
    no_loss = Evidence(whole.hands, whole.rollouts, whole.rotation, whole.training.iloc[:0], SPLITS)
    assert "no training loss" in judge("C2", no_loss).sentence
    assert len(json.loads(as_json(scorecard(no_measure)))) == 24
    of_rl = whole.rotation["arm"] == "rl"
    unmoved = whole.rotation.assign(value=whole.rotation["value"].where(~of_rl, 1e-16))
    assert "changed no weight" in judge("C9", Evidence(whole.hands, whole.rollouts, unmoved, *rest[2:])).sentence
    late = whole.training[whole.training["step"] > 100]
    assert "around the OOD peak (step 20)" in judge("C2", Evidence(whole.hands, *rest[:2], late, SPLITS)).sentence


def test_a_run_of_a_single_problem_has_values_without_intervals():
    whole = made_up()
    one = whole.hands[whole.hands["problem"] == whole.hands["problem"].iloc[0]]
    card = scorecard(Evidence(one, whole.rollouts, whole.rotation, whole.training, SPLITS))
    assert any(c.n == 1 and np.isfinite(c.estimate) and np.isnan(c.ci_low) for c in card)
    assert not any("nan" in c.sentence for c in card)


def test_two_seeds_have_intervals_over_problems_and_one_may_lack_a_stage():
    one, both = made_up(seeds=(1,)), made_up(seeds=(1, 2), jitter=0.01)
    of_one = both.hands[(both.hands["seed"] == 1) | (both.hands["stage"] == "sft")]
    rest = both.rollouts.query("seed == 1"), both.rotation.query("seed == 1"), both.training
    lacking = Evidence(of_one, *rest, SPLITS)
    for name, test in (("C1", "paper"), ("C4", "paper"), ("C4", "baselines"), ("C6", "paper"), ("C9", "baselines")):
        alone, two, part = (judge(name, e, test) for e in (one, both, lacking))
        assert two.n and part.n and part.ci_low <= part.estimate <= part.ci_high, name
        assert two.ci_high - two.ci_low <= 3 * (alone.ci_high - alone.ci_low) + 0.01, "no t of one degree of freedom"
    assert judge("C4", lacking).estimate == pytest.approx(judge("C4", made_up(jitter=0.01)).estimate)


def test_scorecards_stand_side_by_side_as_they_were_written():
    card = scorecard(made_up(**FIVE))
    again = from_json(as_json(card))
    assert as_json(again) == as_json(card)
    other = scorecard(made_up(both=by_step(0.0, *[0.5] * 6), mitigations={}))
    table = beside({"one": again, "other": other})
    assert len(table) == len(card) and table.columns.tolist() == ["one", "other", "paper", "runs"]
    first = table.loc["C1", "as the paper tests it"]
    assert first["one"].startswith("supported: +") and first["paper"] == "+10.6" and first["runs"] == "different"
    last = table.loc["C10", "as the paper tests it"]
    assert last["other"] == "not measured" and last["runs"] == "not measured by two"
    assert "supported in all 2" in set(table["runs"])


def test_a_run_without_right_answers_is_judged_by_reading_and_says_so():
    """What the accuracies of GOOD say is now what is read; an answer in a hundred is right."""
    whole = made_up(**FIVE)
    read = whole.hands.assign(numbers_read=(whole.hands["outcome"] == "correct").astype(float))
    rare = pd.Series(np.where(np.arange(len(read)) % 100 == 0, "correct", "wrong_value"), read.index)
    rest = whole.rollouts, whole.rotation, whole.training, SPLITS, whole.mitigations
    evidence = Evidence(read.assign(outcome=rare.where(read["outcome"] != "malformed", "malformed")), *rest)
    assert evidence.outcome == "numbers_read" and evidence.peaks == whole.peaks
    for name, test in (("C1", "paper"), ("C4", "baselines"), ("C7", "paper"), ("C8", "paper")):
        mine, its = judge(name, evidence, test), judge(name, whole, test)
        assert (mine.estimate, mine.verdict) == (its.estimate, its.verdict)
        assert mine.quantity == f"numbers read: {its.quantity}" and mine.sentence.startswith("Judged by numbers read")
    assert Evidence(read, *rest).outcome == "correct", "where answers are right, accuracy decides"


@pytest.mark.parametrize(("right", "metric"), [(0.04, "numbers_read"), (0.06, "accuracy")])
def test_the_measurements_say_by_what_a_run_is_judged(right, metric):
    rows = [("sft", "sft", 0, t, 1, s, m, v, 100) for t in (0, 8) for s in ("taught", "both")
            for m, v in (("accuracy", right if s == "both" else 0.9), ("numbers_read", 0.5))]  # fmt: skip
    table = pd.DataFrame(rows, columns=COLUMNS)
    assert judged_by(table, SPLITS) == metric
    assert judged_by(table[table["metric"] == "accuracy"], SPLITS) == "accuracy"


def test_a_paired_difference_of_two_splits_is_known_well():
    """The i-th hand of one split is the i-th of another, whatever they are called."""
    evidence = made_up(larger=GOOD["both"])
    gap = evidence.measure(
        lambda s, other, _: s["sft", "sft", 0, 20] - other["sft", "sft", 0, 20], SPLITS["larger"], SPLITS["both"]
    )
    assert gap.value == gap.low == gap.high == 0 and gap.n == HANDS


def test_c4_names_every_baseline_by_its_information():
    claim = judge("C4", made_up(sft_continued=BETTER), "baselines")
    assert claim.verdict == "supported" and "rejection sampling" in claim.quantity
    for words in ("equal information: rejection", "more information: SFT", "no training: last checkpoints averaged"):
        assert words in claim.sentence


def test_c8_speaks_in_both_units_and_of_the_other_preprint():
    claim = judge("C8", made_up())
    assert claim.estimate == pytest.approx(0.5 / 0.6, abs=0.02) and claim.paper == 0.75
    assert "of the loss" in claim.sentence and "arXiv:2508.16546 gives 70 to 80 % of the level" in claim.sentence


def test_c1_is_not_fooled_by_picking_the_best_of_many_noisy_checkpoints():
    """Accuracies that differ by chance alone: the largest is no peak. A naive difference would be above 0."""
    rng = np.random.default_rng(3)
    steps = list(range(0, 400, 10))
    frames = []
    for step in steps:
        right = rng.random(HANDS) < 0.3
        frame = pd.DataFrame({"problem": [f"h{i:03d}" for i in range(HANDS)], "loss": 1.0})
        frame["outcome"] = np.where(right, "correct", "wrong_value")
        for split in ONLY_TWO.names:
            frames.append(frame.assign(stage="sft", arm="sft", from_step=0, step=step, seed=1, split=split))
    none = pd.DataFrame({"seed": [], "from_step": []})
    evidence = Evidence(pd.concat(frames), none, none, none, ONLY_TWO)
    naive = max(f["outcome"].eq("correct").mean() for f in frames) - frames[-1]["outcome"].eq("correct").mean()
    claim = judge("C1", evidence)
    assert naive > 0.04 and abs(claim.estimate) < naive and claim.verdict != "supported"


def test_numbers_are_shown_in_their_unit():
    assert in_unit("points", 0.29355, 0.2571, 0.33) == "+29.4 [+25.7, +33.0] points"
    assert in_unit("%", -0.039) == "-4" and in_unit("", 0.2859) == "+0.29"
    assert in_unit("times", 1.39, 1.287, 1.501) == "1.39 [1.29, 1.50] times"
    assert in_unit("points", None) == in_unit("points", float("nan"), 0.0, 0.0) == ""


def test_the_scorecard_as_json_has_the_agreed_fields():
    rows = json.loads(as_json(one_seed()))
    assert [r["claim"] for r in rows if r["test"] == "paper"] == [f"C{i}" for i in range(1, 14)]
    for row in rows:
        assert {"claim", "test", "verdict", "estimate", "ci_low", "ci_high", "n", "paper", "version"} <= set(row)
        assert row["verdict"] in VERDICTS and row["test"] in TESTS


def test_the_table_and_the_figure_have_a_column_a_test():
    card = one_seed()
    lines = as_markdown(card).splitlines()
    assert len(lines) == 15 and all(line.replace("\\|", "").count("|") == 5 for line in lines)
    assert "**supported**" in lines[2] and lines[4].endswith("| – |")
    other = scorecard(made_up(both=by_step(0.0, *[0.5] * 6), mitigations={}))
    beside_it = as_markdown(card, {"another": other}).splitlines()
    assert beside_it[0].endswith("| another, as the paper tests it |") and all(
        a.startswith(b[:-1]) for a, b in zip(beside_it, lines, strict=True)
    )
    assert "| a\\|b, as" in as_markdown(card, {"a|b": other}).splitlines()[0]
    assert "| not supported: " in beside_it[2] and beside_it[11].endswith("| not measured |")
    figure = plots.scorecard(card)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts.count("supported") == 23 and {"C1", "C11", *TESTS.values()} <= set(texts)
    assert "**What was seen, C4 against baselines: supported.**" in sentence(made_up(), "C4")


def test_a_claim_from_elsewhere_stands_below_the_others(tmp_path, monkeypatch):
    """One new file, that assigns a rule to a name; here in a folder of one's own."""
    (tmp_path / "my_claims.py").write_text(
        "from oodlib.analysis.claims import Finding, Rule, decide\n\n\n"
        "def paper(e):\n"
        '    """Supported: ID accuracy rises."""\n'
        "    rise = e.measure(lambda s, fall: s[e.sft(e.end)] - s[e.sft(0)], e.splits.trained)\n"
        "    verdict = decide(rise.low > 0, rise.high <= 0)\n"
        "    return Finding(verdict, rise, None, 'ID(end) - ID(0)', 'It rises.')\n\n\n"
        "CLAIM = Rule('W1', 'SFT learns', 'points', 'ours', paper)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    *others, last = scorecard(made_up(), extra=["my_claims:CLAIM"])
    assert len(others) == 24 and (last.claim, last.title, last.verdict) == ("W1", "SFT learns", "supported")
    rule = claims.get("my_claims:CLAIM")
    assert last.estimate == pytest.approx(0.85) and rule.text("paper") == "Supported: ID accuracy rises."


def test_an_unknown_claim_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match=r"'c77'.*c1, .*c2.*module:object"):
        judge("C77", made_up())


def test_every_claim_has_a_title_a_unit_and_its_rules_in_words():
    for rule in map(claims.get, claims.names()):
        assert rule.title and not rule.title.endswith(".") and rule.unit in claims.FORMS and rule.tests
        for text in map(rule.text, rule.tests):
            assert "Estimate" in text and "Supported" in text and "Not supported:" in text
