"""The exercises: solutions pass, untouched ones fail, a check refuses what is wrong and takes any right answer."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "notebooks" / "exercises"))
import checks
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from safetensors.torch import load_file

from oodlib import Run, ensure
from oodlib.analysis.stats import over_seeds
from oodlib.analysis.sweep import Sweep
from oodlib.config import SHARE, load_config
from oodlib.io import as_measurements
from oodlib.models.loading import save_weights
from oodlib.models.sources import model_folder
from oodlib.tasks.general_points import TASK

NOTEBOOKS = SHARE / "notebooks"
EXERCISES = sorted((NOTEBOOKS / "exercises").glob("*.ipynb"))
DAMAGED = ("model.layers.1.self_attn.k_proj.weight", "lm_head.weight")  # in the made-up patient
BASE = model_folder("tiny")


def cells(path):
    return nbformat.read(path, as_version=4).cells


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """The base model with the left singular vectors of two matrices turned at random, and nothing else."""
    weights = load_file(BASE / "model.safetensors")
    for name in DAMAGED:
        turn = torch.linalg.qr(torch.randn(*[len(weights[name])] * 2, generator=torch.Generator().manual_seed(0)))[0]
        weights[name] = (turn @ weights[name]).contiguous()
    folder = tmp_path_factory.mktemp("patient") / "damaged"
    save_weights(weights, BASE, folder)
    return folder


@pytest.fixture(scope="module")
def operation(patient, tmp_path_factory):
    run = Run(load_config("smoke", {"out": str(tmp_path_factory.mktemp("run"))}))
    return checks.Operation(run, str(BASE), str(patient))


@pytest.fixture(scope="module")
def tiny():
    run = Run(load_config("tiny"))
    ensure(run, "rl")
    ensure(run, "sft")
    return run


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A made-up sweep: continued SFT heals most, rejection sampling learns less ID, the reader's RL earns no more."""
    gains = {  # on ID and on OOD hands
        "rl": (0.10, 0.03), "sft_continued": (0.12, 0.05), "rejection_sampling": (0.05, 0.02),
        "rejection_sampling_fresh": (0.10, 0.03), "averaging": (0.02, 0.01), "negatives": (0.04, 0.01),
    }  # fmt: skip
    ood, rows = {0: 0.0, 8: 0.6, 100: 0.33, 300: 0.1}, []
    for condition, starts, arms in (
        ("believer", (8, 100, 300), list(gains)),
        ("cosine", (300,), list(gains)[:5]),
        ("reader", (100,), list(gains)[:5]),
    ):
        for seed in range(30, 40):
            noise, found = 0.002 * np.random.default_rng(seed).normal(size=len(gains) + 1), []
            for split, at in (("id", dict.fromkeys(ood, 0.6)), ("ood", ood)):
                found += [("sft", "sft", 0, t, seed, split, "accuracy", at[t] + noise[0], 99) for t in at]
                for start in starts:
                    for arm, own in zip(arms, noise[1:], strict=False):
                        end = at[start] + noise[0] + gains[arm][split == "ood"] + own
                        found.append(("rl", arm, start, 80, seed, split, "accuracy", end, 99))
            for start in starts:
                for end, reward in (("first", 2.0), ("last", 3.0 if condition != "reader" else 1.0 + seed % 2)):
                    found.append(("rl", "rl", start, 80, seed, "train", f"reward_{end}", reward + noise[1], 8))
            rows.append(as_measurements(found).assign(condition=condition))
    pd.concat(rows).to_csv(tmp_path / "measurements.csv", index=False)
    monkeypatch.setattr(checks, "Sweep", lambda: Sweep(folder=tmp_path))


def execute(path, patient, tmp_path):
    """The code cells of a notebook that was run; only notebook 03 is given other parameters."""
    book = load_notebook_node(str(path))
    if path.stem.startswith("03"):
        config = tmp_path / "few-hands.yaml"
        config.write_text("like: smoke\neval: {every: 60}\n", encoding="utf-8")
        parameters = {"preset": str(config), "out": str(tmp_path), "donor": str(BASE), "recipient": str(patient)}
        book = parameterize_notebook(book, parameters)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=True, resources=where).execute()
    return [cell for cell in book.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", EXERCISES, ids=lambda p: p.stem)
def test_solutions_pass_and_untouched_exercises_fail_their_own_checks(path, patient, tmp_path):
    both = (NOTEBOOKS / "solutions" / path.name, path)
    with ThreadPoolExecutor(2) as pool:
        solved, untouched = pool.map(lambda p: execute(p, patient, tmp_path), both)
    for cell in solved:
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        if tagged(cell, "check"):
            assert "Right: " in "".join(o.get("text", "") for o in cell.outputs), cell.id
    for cell in untouched:
        errors = [o for o in cell.outputs if o.output_type == "error"]
        assert [o.ename for o in errors] == ["Wrong"] * tagged(cell, "check"), cell.id
        assert all("Fill in the cell above" in o.evalue for o in errors), cell.id
        assert not any("Traceback" in line for o in errors for line in o.traceback), "a sentence, no traceback"


def test_solutions_have_the_exercises_cells_but_for_the_answers():
    assert {p.name for p in (NOTEBOOKS / "solutions").glob("*.ipynb")} == {p.name for p in EXERCISES}
    for path in EXERCISES:
        ours, solved = cells(path), cells(NOTEBOOKS / "solutions" / path.name)
        reasons = [c for c in solved if tagged(c, "why")]
        kept = [c for c in solved if not tagged(c, "why")]
        answers = [c for c in ours if tagged(c, "answer")]
        assert len(reasons) == len(answers) == sum(tagged(c, "check") for c in ours) >= 3
        for ours_, theirs in zip(ours, kept, strict=True):
            assert (ours_.id, ours_.cell_type, ours_.metadata) == (theirs.id, theirs.cell_type, theirs.metadata)
            assert (ours_.source == theirs.source) is not tagged(ours_, "answer"), ours_.id


def test_there_are_enough_exercises_and_the_notebooks_are_clean():
    books = [*EXERCISES, *(NOTEBOOKS / "solutions").glob("*.ipynb")]
    every = [c for path in books for c in cells(path)]
    assert sum(tagged(c, "check") for c in every) >= 2 * 12
    for cell in every:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert not tagged(cell, "check") or len(cell.source.splitlines()) == 1


# ---- each check takes any right answer and refuses wrong ones --------------------------------------------


def judged(function, right, wrong, *besides):
    """`right` answers pass; each of `wrong` raises, with a sentence that holds the word given with it."""
    for answer in right:
        function(answer, *besides)
    for answer, word in wrong:
        with pytest.raises(checks.Wrong, match=word):
            function(answer, *besides)


def test_one_way():
    solvable = {p.cards for p in TASK.split("ood")}
    right = [p.cards for p in TASK.split("id") if {"J", "Q"} & {*p.cards} and p.cards not in solvable]
    wrong = [
        (["2", "3", "4", "5"], "alike"),
        (["A", "A", "A", "K"], "cannot"),
        (next(p.cards for p in TASK.split("ood") if TASK.solutions(TASK.problem(p.cards, ID).numbers)), "makes 24"),
        (["2", "3", "4"], "four|4"),
        (["2", "3", "4", "X"], "card"),
    ]
    judged(checks.one_way, [right[0], list(right[-1])], wrong)


ID = {"J": 10, "Q": 10, "K": 10}


def reward(formula, numbers, value, twice=2, foreign=-3):
    """An alternative right answer, that counts on lists; and, with other numbers, wrong ones."""
    if set(formula) - set("0123456789+-*/()"):
        return foreign
    used, left, spare = formula.translate({ord(c): " " for c in "+-*/()"}).split(), list(numbers), 0
    for n in map(int, used):
        if n in left:
            left.remove(n)
        else:
            spare = 1
    return -2 * spare - twice * bool(left) or (5 if value == 24 else -1)


def test_reward():
    wrong = [
        (lambda f, n, v: reward(f, n, v, twice=0), "wrong numbers"),
        (lambda f, n, v: reward(f, n, v, foreign=-5), "illegal"),
        (lambda f, n, v: 5 if v == 24 else reward(f, n, v), "wrong numbers"),
        (lambda f, n, v: {-1: 0}.get(reward(f, n, v), reward(f, n, v)), "wrong value"),
    ]
    judged(checks.reward, [reward], wrong)


def bootstrap(a, b, level=95):
    picks = np.random.default_rng(0).integers(len(a), size=(3000, len(a)))
    return tuple(np.percentile((a - b)[picks].mean(1), [50 - level / 2, 50 + level / 2]))


def unpaired(a, b):
    half = 1.96 * math.sqrt(a.var() / len(a) + b.var() / len(b))
    return a.mean() - b.mean() - half, a.mean() - b.mean() + half


def test_paired_interval():
    wrong = [
        (unpaired, "too wide"),
        (lambda a, b: bootstrap(a, b, 80), "too narrow"),
        (lambda a, b: bootstrap(b, a), "middle"),
        (lambda a, b: bootstrap(a, b)[::-1], "order"),
    ]
    judged(checks.paired_interval, [bootstrap], wrong)


def test_could_be_peak(tiny):
    right = checks.right_hands(tiny)
    best = right.mean().idxmax()
    paired, apart = (
        {int(t) for t in right if t == best or how(right[best].to_numpy(), right[t].to_numpy())[0] <= 0}
        for how in (bootstrap, unpaired)
    )
    assert apart > paired
    wrong = [({best}, "more"), (apart, "lie below"), (paired - {best}, "missing"), ([*paired, 7], "no checkpoint")]
    judged(checks.could_be_peak, [paired, np.array(sorted(paired))], wrong, tiny)


def test_falls_by_corner(tiny):
    peak, end = tiny.peak_step(tiny.config.seed), tiny.config.sft.steps
    of_corner = {name: checks.right_hands(tiny, name)[[peak, end]].to_numpy().T for name in tiny.splits.names}
    right, backwards, apart = (
        {name: how(*of_corner[name]) for name in of_corner}
        for how in (bootstrap, lambda a, b: bootstrap(b, a), unpaired)
    )
    headline = tiny.splits.headline.name
    wrong = [
        (backwards, "middle"),
        ({headline: right[headline]}, "One interval for each"),
        ({**right, headline: right[headline][::-1]}, "order"),
        (apart, "as wide"),
        (right[headline], "dictionary"),
    ]
    judged(checks.falls_by_corner, [right], wrong, tiny)


def test_grpo_advantages(tiny):
    def by_hand(rewards):
        return np.array([(r - r.mean()) / r.std(ddof=1) if r.std() else 0 * r for r in rewards])

    def batch(r):
        return (r - r.mean(1, keepdims=True)) / r.std(ddof=1)

    wrong = [
        (lambda r: by_hand(r) * math.sqrt(8 / 7), "n - 1"),
        (batch, "own spread"),
        (lambda r: r - r.mean(), "add up"),
        (lambda r: -by_hand(r), "sign"),
        (lambda r: by_hand(r)[:, :4], "Shape"),
    ]
    judged(checks.grpo_advantages, [by_hand], wrong, tiny)


def test_rloo_advantages():
    def scaled(r):
        return (r - r.mean(1, keepdims=True)) * r.shape[1] / (r.shape[1] - 1)

    wrong = [(lambda r: r - r.mean(1, keepdims=True), "own reward"), (lambda r: scaled(r) / r.std(), "by hand")]
    judged(checks.rloo_advantages, [scaled], wrong)


def test_silent_groups(tiny):
    right = {t: (np.ptp(checks.in_groups(tiny, "reward", t), axis=1) == 0).mean() for t in tiny.config.rl.starts}
    failed = tiny.table("rollouts", "rl").groupby("from_step")["outcome"].agg(lambda o: (o != "correct").mean())
    wrong = [
        (dict(failed), "Not so"),
        ({t: 100 * s for t, s in right.items()}, "0 to 1"),
        ({8: right[8]}, "started from"),
        (0.3, "dictionary"),
    ]
    judged(checks.silent_groups, [right], wrong, tiny)


def test_numbers():
    judged(checks.group_size, [14, np.int64(14), 14.0], [(13, "hold both"), (20, "fewer"), (13.5, "whole")])
    judged(checks.hands_needed, [1388, 1389.2, 1400], [(234, "reaches"), (694, "reaches"), (2401, "more than")])
    judged(checks.best_of_many, [5.2, 5.4], [(0.052, "More"), (3.0, "ONE"), (9, "ONE")])


def test_principal_angles():
    def by_sines_and_cosines(A, B):
        cosines = np.linalg.svd(A.T @ B, compute_uv=False).clip(0, 1)
        sines = np.linalg.svd(B - A @ (A.T @ B), compute_uv=False)[::-1].clip(0, 1)
        return np.where(cosines**2 > 0.5, np.arcsin(sines), np.arccos(cosines))[::-1]

    wrong = [
        (lambda A, B: np.arccos(np.linalg.svd(A.T @ B, compute_uv=False).clip(0, 1)), "Small"),
        (lambda A, B: np.arcsin(np.linalg.svd(B - A @ (A.T @ B), compute_uv=False).clip(0, 1)), "90°"),
        (lambda A, B: np.degrees(by_sines_and_cosines(A, B)), "degrees"),
        (lambda A, B: np.arccos(np.abs((A * B).sum(0)).clip(0, 1)), "come out"),
    ]
    judged(checks.principal_angles, [by_sines_and_cosines], wrong)


def arcsin(norm, gap):
    return math.asin(norm / gap) if gap > norm else math.pi / 2


def test_wedin():
    right = [
        lambda s, t, norm, k: arcsin(norm, s[k - 1] - t[k]),
        lambda s, t, norm, k: arcsin(norm, t[k - 1] - s[k]),
        lambda s, t, norm, k: arcsin(norm, s[k - 1] - s[k] - norm),  # by Weyl's inequality
    ]
    wrong = [
        (lambda s, t, norm, k: arcsin(norm, s[k - 1] - s[k]), "Not a bound"),
        (lambda s, t, norm, k: arcsin(norm, t[k - 1] - t[k]), "Not a bound"),
        (lambda s, t, norm, k: math.pi / 2, "weak"),
        (lambda s, t, norm, k: math.degrees(arcsin(norm, s[k - 1] - t[k])), "90°"),
    ]
    judged(checks.wedin, right, wrong)


def edited(recipient, donor, k, left=True, values=False):
    (u, s, v), (a, t, b) = (np.linalg.svd(W, full_matrices=False) for W in (recipient, donor))
    a = a if left else u
    new = [(t if values else s)[i] * np.outer(a[:, i], b[i]) for i in range(k)]
    return sum(new) + sum(s[i] * np.outer(u[:, i], v[i]) for i in range(k, len(s)))


def test_restored():
    wrong = [
        (lambda r, d, k: edited(r, d, k, values=True), "singular values have come"),
        (lambda r, d, k: edited(r, d, k, left=False), "both sides"),
        (lambda r, d, k: edited(r, d, min(r.shape)), "k = 1"),
        (lambda r, d, k: d, "k = 1"),
    ]
    judged(checks.restored, [edited], wrong)


def test_an_operation_measures_what_restored_directions_bring_back(operation):
    everything = [(n, i) for n in operation.spectra for i in range(len(operation.spectra[n][0].values))]
    assert operation.by == "loss" and len(everything) == operation.directions
    assert operation.recovered([]) == 0
    assert operation.recovered(everything) == pytest.approx(1, abs=1e-3)
    assert operation.recovered([d for d in everything if d[0] in DAMAGED]) == pytest.approx(1, abs=1e-3)
    assert operation.recovered([d for d in everything if d[0] not in DAMAGED]) == pytest.approx(0, abs=1e-3)


def test_fewest_directions(operation):
    every = {n: [(n, i) for i in range(len(own.values))] for n, (own, _) in operation.spectra.items()}
    alone = {n: operation.recovered(every[n]) for n in DAMAGED}
    other, first = sorted(DAMAGED, key=alone.get)
    tried = (every[first][:8] + every[other][:n] for n in range(1, 65))
    fewest = next(chosen for chosen in tried if operation.recovered(chosen) >= 0.5)
    sound = next(n for n in every if n not in DAMAGED)
    wrong = [
        (every[sound], "give"),
        (fewest + every[sound], "alone"),
        (every[sound] * 2, "give"),
        ([(first, 10_000)], "exist"),
    ]
    judged(checks.fewest_directions, [fewest, [list(d) for d in fewest]], wrong, operation)


def verdict(refuted, supported):
    return "not supported" if refuted else "supported" if supported else "inconclusive"


def paper_rule(start, rl, peak):
    gain, over = over_seeds(rl - start), over_seeds(rl - peak)
    return verdict(gain.high <= 0 or over.low > 0, gain.low > 0 and over.high < 0.05)


def compared_rule(start, rl, peak, baselines):
    gaps = [over_seeds(rl - c) for c in baselines.values()]
    first = paper_rule(start, rl, peak)
    refuted = first == "not supported" or any(g.high <= 0 for g in gaps)
    return verdict(refuted, first == "supported" and all(g.low > 0 for g in gaps))


def test_c4_rules(sweep):
    def unpaired_rule(start, rl, peak):
        half = 2 * math.sqrt((rl.var() + start.var()) / len(rl))
        return verdict(False, (rl - start).mean() > half)

    checks.c4_rules(paper_rule, compared_rule)
    for paper, controlled, word in (
        (paper_rule, lambda s, r, p, c: paper_rule(s, r, p), "your second"),
        (unpaired_rule, compared_rule, "your first"),
        (lambda s, r, p: verdict((r - s).mean() < 0, (r - s).mean() > 0), compared_rule, "nothing"),
        (lambda s, r, p: verdict(over_seeds(r - s).high <= 0, over_seeds(r - s).low > 0), compared_rule, "above the"),
        (paper_rule, lambda s, r, p, c: compared_rule(s, r, p, {"a": c["sft_continued"]}), "15"),
        (lambda s, r, p: True, compared_rule, "verdict is one of"),
    ):
        with pytest.raises(checks.Wrong, match=word):
            checks.c4_rules(paper, controlled)


def design(**changes):
    plain = {
        "condition": "believer",
        "from_step": 100,
        "arm": "sft_continued",
        "margin": 0.02,
        "refutes": lambda low, high: high <= 0,
    }
    return plain | changes


def test_baseline_against_c4(sweep):
    right = [
        design(),
        design(arm="rejection_sampling_fresh", from_step=300, margin=0.015),
        design(refutes=lambda low, high: high < 0.02),
    ]
    wrong = [
        (design(condition="six-tries"), "no RL there"),
        (design(arm="averaging"), "no updates"),
        (design(arm="start"), "no baseline"),
        (design(arm="negatives"), "done otherwise"),
        (design(arm="rejection_sampling"), "learns less on ID"),
        (design(condition="cosine", from_step=300, arm="negatives"), "no such arm"),
        (design(condition="reader"), "did not rise"),
        (design(from_step=8), "Hardly anything"),
        (design(margin=0.001), "too wide"),
        (design(margin=0.1), "overlooks"),
        (design(refutes=lambda low, high: low <= 0), "room for a healing"),
        (design(refutes=lambda low, high: high < -0.2), "wholly below 0"),
    ]
    judged(checks.baseline_against_c4, right, wrong)


def ahead(one, other):
    level = min(one[-1][0], other[-1][0])
    return score(one, level) - score(other, level)


def score(path, level, lines=True):
    found = [y for x, y in path if x >= level]
    for (x0, y0), (x1, y1) in pairwise(path):
        if lines and (x0 - level) * (x1 - level) < 0:
            found.append(np.interp(level, *zip(*sorted([(x0, y0), (x1, y1)]), strict=True)))
    return max(found)


def test_at_equal_id():
    def at(level):
        return lambda one, other: score(one, level(one, other)) - score(other, level(one, other))

    wrong = [
        (lambda one, other: one[-1, 1] - other[-1, 1], "stops earlier"),
        (at(lambda one, other: min(one[:, 0].max(), other[:, 0].max())), "at the ends"),
        (
            lambda one, other: (lambda t: score(one, t, False) - score(other, t, False))(min(one[-1, 0], other[-1, 0])),
            "straight line",
        ),
    ]
    judged(checks.at_equal_id, [ahead], wrong)


def test_kept_without_ood():
    def first_minimum(steps, loss, accuracy):
        return next((i for i in range(len(loss) - 1) if loss[i + 1] > loss[i]), len(loss) - 1)

    wrong = [
        (lambda steps, loss, accuracy: len(steps) - 1, "below the peak"),
        (lambda steps, loss, accuracy: 0, "below the peak|too much"),
        (lambda steps, loss, accuracy: np.argmax(accuracy), "below the peak"),
        (lambda steps, loss, accuracy: len(steps), "no position"),
        (lambda steps, loss, accuracy: steps[0], "no position"),
    ]
    judged(checks.kept_without_ood, [first_minimum], wrong)
