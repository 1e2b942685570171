"""The tasks on matrices, against sympy and brute force."""

from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodlib.tasks import get_task
from oodlib.tasks.matrices import HELD, echelon

TASKS = ("determinant", "rank")


def det(rows):
    """The sum over all permutations (Leibniz)."""
    n = len(rows)
    signs = [(-1) ** sum(p[i] > p[j] for i, j in combinations(range(n), 2)) for p in permutations(range(n))]
    return sum(
        s * int(np.prod([rows[i][p[i]] for i in range(n)], dtype=object))
        for s, p in zip(signs, permutations(range(n)), strict=True)
    )


def rank_by_minors(rows):
    """The size of the largest square part whose determinant is not 0."""
    m, n = len(rows), len(rows[0])
    return max(
        (
            k
            for k in range(1, min(m, n) + 1)
            for r, c in product(combinations(range(m), k), combinations(range(n), k))
            if det([[rows[i][j] for j in c] for i in r])
        ),
        default=0,
    )


def rank_by_fractions(rows):
    rows, rank = [[Fraction(x) for x in row] for row in rows], 0
    for j in range(len(rows[0])):
        chosen = next((i for i in range(rank, len(rows)) if rows[i][j]), None)
        if chosen is None:
            continue
        rows[rank], rows[chosen] = rows[chosen], rows[rank]
        rows[rank + 1 :] = [
            [x - row[j] / rows[rank][j] * y for x, y in zip(row, rows[rank], strict=True)] for row in rows[rank + 1 :]
        ]
        rank += 1
    return rank


entries = st.integers(-9, 9)
square = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(entries, min_size=n, max_size=n), min_size=n, max_size=n)
)
sparse = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda s: st.lists(
        st.lists(st.sampled_from((0, 0, 0, 1, -1, 2, 7)), min_size=s[1], max_size=s[1]), min_size=s[0], max_size=s[0]
    )
)


@settings(max_examples=150, deadline=None)
@given(square)
def test_determinants_are_exact(rows):
    task = get_task("determinant")
    assert task.value(task.problem(rows).matrix) == det(rows)


@settings(max_examples=150, deadline=None)
@given(sparse)
def test_ranks_are_exact(rows):
    task = get_task("rank")
    assert task.value(task.problem(rows).matrix) == rank_by_fractions(rows) == rank_by_minors(rows)


def test_large_entries_stay_whole_numbers():
    rows = np.random.default_rng(0).integers(-99, 100, (8, 8)).tolist()
    assert echelon(rows) == (8, det(rows))


@pytest.mark.parametrize("name", TASKS)
def test_what_is_dealt_is_what_the_corner_says(name):
    task, rng = get_task(name), np.random.default_rng(1)
    for split, kind in task.kinds.items():
        assert not set(task.split(split)) & set(task.sample(rng, split, 500)), "what is measured is not dealt"
        for problem in [*task.split(split), *task.sample(rng, split, 200)]:
            matrix = np.array(problem.matrix)
            assert matrix.shape == (kind.rows, kind.columns) and np.abs(matrix).max() <= kind.largest
            assert not kind.reached or np.abs(matrix).max() == kind.largest
            assert task.problem(problem.matrix) == problem
        labels = [task.label(problem) for problem in task.split(split)]
        assert len(set(labels)) == len(labels) == HELD and task.split(split) == task.split(split)


def test_half_of_the_determinants_are_of_symmetric_matrices_and_none_is_zero():
    task = get_task("determinant")
    for split in task.splits.names:
        problems = task.sample(np.random.default_rng(2), split, 600)
        assert all(task.value(p.matrix) for p in problems)
        share = np.mean([np.array_equal(np.array(p.matrix).T, p.matrix) for p in problems])
        assert 0.45 < share < 0.68  # of 2 x 2 one in nine is symmetric by chance


def test_ranks_are_dealt_evenly():
    task = get_task("rank")
    ranks = [task.value(p.matrix) for p in task.sample(np.random.default_rng(3), "ood", 1000)]
    assert all(200 < ranks.count(r) < 300 for r in range(1, 5)) and 0 not in ranks


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("style", ["compact", "chat"])
def test_right_answers_are_right_and_others_are_not(name, style):
    task, rng = get_task(name), np.random.default_rng(4)
    for split in task.splits.names:
        for problem in task.sample(rng, split, 20):
            said = task.answer(problem, style, rng)
            text = said if style == "compact" else said[-1]["content"]
            assert task.verify(problem, f"so it is {text}").outcome == "correct"
            value = task.value(problem.matrix)
            assert task.verify(problem, text + f' {{"answer": {value + 1}}}').outcome == "wrong_value"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"answer": -2}', "correct"),
        ("{'answer' : -2 }", "correct"),
        ('{"answer": - 2 }', "correct"),
        ('{"answer": 1} {"answer": -2}', "correct"),
        ('{"answer": 2}', "wrong_value"),
        ('{"answer": -2.0}', "malformed"),
        ('{"answer": "-2"}', "malformed"),
        ('{"answer": -2', "malformed"),
        ('{"answer": −2}', "malformed"),
        ('{"answer": ٢}', "malformed"),
        ("-2", "malformed"),
        ("", "malformed"),
        ('{"answer":' * 50_000, "malformed"),
        ('{"answer": ' + "1" * 100_000 + "}", "malformed"),
    ],
)
def test_the_last_whole_number_in_the_wanted_form_counts(text, outcome):
    task = get_task("determinant")
    verdict = task.verify(task.problem([[1, 2], [3, 4]]), text)
    assert verdict.outcome == outcome and verdict.reward == (5 if outcome == "correct" else -1)


@pytest.mark.parametrize(
    ("name", "matrix", "words"),
    [
        ("rank", [[1, 2], [3]], "rows must be lists of one length"),
        ("rank", "12", "'12' is no matrix"),
        ("rank", 7, "7 is no matrix"),
        ("rank", [1, 2], "rows must be lists"),
        ("rank", [], "no matrix"),
        ("rank", [b"ab"], "no matrix"),
        ("rank", np.array(5), "5 is no matrix"),
        ("rank", [np.array(5)], "no matrix"),
        ("rank", np.array([[-128]], dtype=np.int8), "the entry -128"),
        ("rank", [[np.int64(-(2**63))]], "the entry"),
        ("rank", "1" * 10_000, "is no matrix"),
        ("rank", [[]], "1 x 0"),
        ("rank", [[1.5]], "the entry 1.5"),
        ("rank", [[True]], "the entry True"),
        ("rank", [[100]], "the entry 100"),
        ("rank", [[0] * 9], "1 x 9"),
        ("determinant", [[1, 2]], "1 x 2 has no determinant"),
    ],
)
def test_what_is_no_matrix_is_refused_by_name(name, matrix, words):
    with pytest.raises(ValueError, match=words):
        get_task(name).problem(matrix)


def test_an_unknown_split_is_refused_by_name():
    for name in TASKS:
        with pytest.raises(ValueError, match="unknown split 'far'; allowed: id, new_size, new_entries, ood"):
            get_task(name).sample(np.random.default_rng(0), "far", 1)


@pytest.mark.parametrize("name", TASKS)
def test_a_base_model_can_write_every_answer_in_its_words(name):
    task, rng = get_task(name), np.random.default_rng(5)
    known = set(task.words())
    for wrong in range(3):
        for _ in range(50):
            dialogue = task.pretraining_dialogue(rng, wrong, 0.5)
            assert set(" ".join(dialogue).split()) <= known and len(dialogue) == 2 + 2 * wrong
    for split in task.splits.names:
        for problem in task.split(split):
            words = [task.prompt(problem, "compact"), task.answer(problem, "compact", rng)]
            assert set(" ".join(words).split()) <= known
