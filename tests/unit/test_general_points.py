"""The solver of GeneralPoints against brute force, its splits, and what it asks and answers."""

import ast
import json
import operator
import re
from collections import Counter
from fractions import Fraction
from functools import cache
from itertools import combinations, combinations_with_replacement, permutations

import numpy as np
import pytest

from oodlib.tasks.base import get_task, task_names
from oodlib.tasks.general_points.solver import solutions

TASK = get_task("general_points")
CARDS = ["A", *map(str, range(2, 11)), "J", "Q", "K"]
EVERY = [*CARDS[:10], "11", "12", "13", "J", "Q", "K"]
RULES = {
    "id": {"J": 10, "Q": 10, "K": 10},
    "new_rule": {"J": 5, "Q": 6, "K": 7},
    "new_numbers": {"J": 10, "Q": 10, "K": 10},
    "ood": {"J": 11, "Q": 12, "K": 13},
    "face_12": dict.fromkeys("JQK", 12),
}
HANDS = list(combinations_with_replacement(range(1, 14), 4))


def rng(seed=0):
    return np.random.default_rng(seed)


def worth(card, rule):
    return 1 if card == "A" else rule[card] if card in rule else int(card)


# --- oracles, on fractions ------------------------------------------------------------------------


def combined(a, b):
    """Every value of one operator on two values, either way round."""
    return {a + b, a - b, b - a, a * b} | ({a / b} if b else set()) | ({b / a} if a else set())


@cache
def reachable(numbers):
    """Every value that a sorted tuple of numbers can make."""
    if len(numbers) == 1:
        return frozenset({Fraction(numbers[0])})
    return frozenset(
        value
        for left, right in halves(numbers)
        for a in reachable(left)
        for b in reachable(right)
        for value in combined(a, b)
    )


def halves(numbers):
    where = range(len(numbers))
    return {
        (tuple(numbers[i] for i in picked), tuple(numbers[i] for i in where if i not in picked))
        for size in range(1, len(numbers) // 2 + 1)
        for picked in combinations(where, size)
    }


def can_make(numbers, target):
    """Whether the last operator can give the target: as `reachable`, in whole numbers, for speed."""
    for left, right in halves(numbers):
        for a in reachable(left):
            p, q = a.numerator, a.denominator
            for b in reachable(right):
                r, s = b.numerator, b.denominator
                t = target * q * s
                ps, rq = p * s, r * q
                if t in (ps + rq, ps - rq, rq - ps) or p * r == t:
                    return True
                if (rq and ps == target * rq) or (ps and rq == target * ps):
                    return True
    return False


@pytest.fixture(scope="module")
def solvable():
    return {numbers for numbers in HANDS if can_make(numbers, 24)}


def spelled(numbers):
    """Every bracketing and every choice of operators for numbers in this order, with the value."""
    if len(numbers) == 1:
        return [(Fraction(numbers[0]), str(numbers[0]))]
    found = []
    for cut in range(1, len(numbers)):
        right = spelled(numbers[cut:])
        for a, x in spelled(numbers[:cut]):
            for b, y in right:
                found += [(a + b, f"({x}+{y})"), (a - b, f"({x}-{y})"), (a * b, f"({x}*{y})")]
                if b:
                    found.append((a / b, f"({x}/{y})"))
    return found


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
KINDS = {ast.Add: ("sum", 1), ast.Sub: ("sum", -1), ast.Mult: ("product", 1), ast.Div: ("product", -1)}


def value(node):
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value)
    assert isinstance(node, ast.BinOp), ast.dump(node)
    a, b = value(node.left), value(node.right)
    return OPERATORS[type(node.op)](a, b)


def shape(node):
    """A formula without order and grouping: a sum or product is the multiset of its signed parts."""
    if isinstance(node, ast.Constant):
        return node.value
    kind = KINDS[type(node.op)][0]
    return kind, frozenset(Counter(parts(node, kind, 1)).items())


def parts(node, kind, sign):
    if isinstance(node, ast.BinOp) and KINDS[type(node.op)][0] == kind:
        yield from parts(node.left, kind, sign)
        yield from parts(node.right, kind, sign * KINDS[type(node.op)][1])
    else:
        yield sign, shape(node)


def parse(formula):
    return ast.parse(formula, mode="eval").body


def numbers_in(formula):
    return sorted(map(int, re.findall("[0-9]+", formula)))


# --- the solver -----------------------------------------------------------------------------------


def test_the_solvable_hands_are_those_of_brute_force(solvable):
    assert {numbers for numbers in HANDS if solutions(numbers)} == solvable
    assert len(HANDS) == 1820
    assert len(solvable) == 1362
    assert sum(max(numbers) <= 10 for numbers in solvable) == 566


def test_every_formula_of_every_hand_is_right_and_there_once(solvable):
    rule = {"J": 11, "Q": 12, "K": 13}
    for numbers in solvable:
        hand = TASK.problem([CARDS[n - 1] for n in numbers], rule)
        found = TASK.solutions(numbers)
        trees = [parse(formula) for formula in found]
        assert found == sorted(found)
        assert len({shape(tree) for tree in trees}) == len(found)
        for formula, tree in zip(found, trees, strict=True):
            assert value(tree) == 24
            assert numbers_in(formula) == list(numbers)
            assert TASK.verify_formula(hand, formula).reward == 5


@pytest.mark.parametrize(
    ("numbers", "target"),
    [((3, 3, 8, 8), 24), ((2, 7, 10, 12), 24), ((1, 1, 2, 12), 24), ((1, 2, 3, 4), 24), ((6, 6, 6, 6), 24),
     ((1, 5, 7, 10), 3), ((2, 3, 9), 6), ((2, 2, 2, 2, 2), 3), ((3, 3, 3, 3, 8), 24)],
)  # fmt: skip
def test_no_way_is_missing(numbers, target):
    """Every order, bracketing and choice of operators, written out, is one of the solver's formulas."""
    ways = {
        shape(parse(text)) for order in set(permutations(numbers)) for made, text in spelled(order) if made == target
    }
    assert {shape(parse(formula)) for formula in solutions(numbers, target)} == ways


@pytest.mark.parametrize(
    ("numbers", "formulas"),
    [((3, 3, 8, 8), ["8/(3-8/3)"]), ((1, 5, 5, 5), ["5*(5-1/5)"]), ((3, 3, 7, 7), ["7*(3+3/7)"]),
     ((1, 3, 4, 6), ["6/(1-3/4)"]), ((1, 1, 1, 1), []), ((13, 13, 13, 13), []), ((24,), ["24"]), ((23,), []),
     ((4, 6), ["4*6"]), ((5, 6), [])],
)  # fmt: skip
def test_known_hands(numbers, formulas):
    assert [shape(parse(f)) for f in solutions(numbers)] == [shape(parse(f)) for f in formulas]


def test_the_order_of_the_numbers_does_not_matter():
    assert len({tuple(TASK.solutions(order)) for order in permutations((2, 7, 10, 12))}) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_hands_of_every_size_and_other_targets(size):
    draw = rng(size)
    for _ in range(3 if size == 5 else 20):
        numbers = tuple(sorted(int(n) for n in draw.integers(1, 14, size)))
        for target in (1, 7, 24, 100, 999, numbers[0]):
            found = solutions(numbers, target)
            assert bool(found) == (target in reachable(numbers))
            for formula in found[:50]:
                assert value(parse(formula)) == target
                assert numbers_in(formula) == list(numbers)


@pytest.mark.parametrize(
    ("numbers", "target", "named"),
    [((), 24, "0"), ((1,) * 7, 24, "7"), ((0, 3, 8, 8), 24, "0"), ((-3, 3, 8, 8), 24, "-3"),
     ((3.0, 3, 8, 8), 24, "3.0"), ((True, 2, 3, 4), 24, "True"), (("3", "3"), 24, "'3'"),
     ((3, 3, 8, 8), 0, "0"), ((3, 3, 8, 8), -24, "-24"), ((3, 3, 8, 8), 24.0, "24.0")],
)  # fmt: skip
def test_what_cannot_be_a_hand_to_solve(numbers, target, named):
    assert TASK.solutions([3, 3, 8, 8]) and TASK.solutions([1, 2, 3, 4])  # what 3.0 and True are equal to
    with pytest.raises(ValueError, match=re.escape(named)):
        TASK.solutions(numbers, target)


# --- the splits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("id", 1236), ("ood", 796), ("new_rule", 871)])
def test_a_split_is_every_solvable_hand_once(name, size, solvable):
    rule = RULES[name]
    expected = [
        cards
        for cards in combinations_with_replacement(CARDS, 4)
        if tuple(sorted(worth(card, rule) for card in cards)) in solvable
        and (name == "id" or set(cards) & {"J", "Q", "K"})
    ]
    hands = TASK.split(name)
    assert [hand.cards for hand in hands] == expected
    assert len(expected) == size
    assert len({TASK.label(hand) for hand in hands}) == size
    assert {(hand.rule, hand.target) for hand in hands} == {(tuple(rule.values()), 24)}
    assert all(hand.numbers == tuple(worth(card, rule) for card in hand.cards) for hand in hands)


def test_new_numbers_are_the_hands_of_the_headline_with_plain_cards():
    plain = {"J": "11", "Q": "12", "K": "13"}
    for hand, other in zip(TASK.split("new_numbers"), TASK.split("ood"), strict=True):
        assert hand.cards == tuple(plain.get(card, card) for card in other.cards)
        assert hand.numbers == other.numbers and hand.rule == (10, 10, 10)


def test_the_splits_say_what_they_change():
    splits = TASK.splits
    assert splits.names == ("id", "new_rule", "new_numbers", "ood")
    assert (splits.trained.name, splits.headline.name) == ("id", "ood")
    assert splits.changing("rule").name == "new_rule" and splits.changing("numbers").name == "new_numbers"
    assert splits.changing("rule", "numbers") is splits.headline and splits.changing("suit") is None
    trained = {tuple(RULES["id"].values())}
    written = {number for hand in TASK.split("id") for number in hand.numbers}
    for split in splits:
        hands = TASK.split(split.name)
        faced = [hand for hand in hands if set(hand.cards) & set("JQK")]
        assert ("rule" in split.changes) == bool(faced and {hand.rule for hand in faced} - trained)
        assert ("numbers" in split.changes) == any(set(hand.numbers) - written for hand in hands)
    assert type(splits).from_dict(json.loads(json.dumps(splits.as_dict()))) == splits


def test_probes_give_all_face_cards_one_value():
    for probe in TASK.splits.probes:
        hands = TASK.split(probe.name)
        assert {hand.rule for hand in hands} == {(probe.value,) * 3}
        assert len({hand.cards for hand in hands}) == len(hands) == 150
        assert all(set(hand.cards) & set("JQK") and can_make(tuple(sorted(hand.numbers)), 24) for hand in hands[::5])
    assert [probe.value for probe in TASK.splits.probes] == list(range(1, 14))


def test_a_split_cannot_be_spoilt_by_its_user():
    TASK.split("id").clear()
    assert len(TASK.split("id")) == 1236


@pytest.mark.parametrize("name", ["id", "ood", "new_rule", "new_numbers", "face_12"])
def test_samples_come_from_the_split_and_depend_on_the_seed_only(name):
    hands = {hand.cards: hand.rule for hand in TASK.split(name)}
    rank = {card: i for i, card in enumerate(EVERY)}
    dealt = TASK.sample(rng(1), name, 20_000)
    assert len(dealt) == 20_000
    times = Counter(tuple(sorted(hand.cards, key=rank.get)) for hand in dealt)
    assert set(times) == set(hands)
    assert max(times.values()) < 4 * 20_000 / len(hands)
    assert {hand.rule for hand in dealt} == set(hands.values())
    assert sum(hand.cards in hands for hand in dealt) < 10_000  # shuffled, not in the split's order
    assert TASK.sample(rng(1), name, 50) == TASK.sample(rng(1), name, 50) != TASK.sample(rng(2), name, 50)
    assert TASK.sample(rng(1), name, 0) == []


# --- questions and answers ------------------------------------------------------------------------


def some_hands(n=150):
    return [*TASK.sample(rng(3), "id", n), *TASK.sample(rng(4), "ood", n)]


def test_compact_questions_and_answers_have_no_unknown_words():
    from oodlib.models.base import build_tokenizer

    assert len(set(TASK.words())) == len(TASK.words())
    tokenizer, draw = build_tokenizer(TASK.words()), rng()
    texts = [TASK.prompt(hand, "compact") + TASK.answer(hand, "compact", draw) for hand in some_hands()]
    texts += [" ".join(TASK.pretraining_dialogue(draw, n % 5)) for n in range(500)]
    texts += [TASK.feedback(hand, TASK.verify(hand, ""), "compact") for hand in some_hands(2)]
    words = set(" ".join(texts).split())
    known = tokenizer(sorted(words))["input_ids"]
    assert all(len(ids) == 1 and ids != [tokenizer.unk_token_id] for ids in known)
    ids = tokenizer(texts[0])["input_ids"]
    assert tokenizer.decode(ids).split() == texts[0].split()


def test_compact_answers_are_json_and_right():
    draw = rng()
    for hand in some_hands():
        answer = TASK.answer(hand, "compact", draw)
        fields = json.loads(answer)
        assert list(fields) == ["cards", "numbers", "formula"]
        assert fields["cards"].split() == list(hand.cards)
        assert fields["numbers"].split() == [str(n) for n in hand.numbers]
        assert TASK.verify(hand, answer).reward == TASK.verify_formula(hand, fields["formula"]).reward == 5


def test_chat_answers_are_json_and_right():
    draw = rng()
    for hand in some_hands():
        [message] = TASK.answer(hand, "chat", draw)
        fields = json.loads(message["content"])
        assert message["role"] == "assistant"
        assert fields["cards"] == list(hand.cards)
        assert fields["numbers"] == list(hand.numbers)
        assert TASK.verify(hand, message["content"]).reward == 5


@pytest.mark.parametrize("style", ["compact", "chat"])
def test_questions_name_the_cards_the_rule_and_the_target(style):
    hand = TASK.problem(["A", "J", "3", "10"], {"J": 7, "Q": 8, "K": 9}, target=12)
    question = TASK.prompt(hand, style)
    if style == "chat":
        [message] = question
        assert message["role"] == "user"
        question = message["content"]
    words = re.findall(r"\w+", question)
    assert {"A", "J", "3", "10", "7", "8", "9", "12"} <= set(words)
    other = TASK.prompt(TASK.problem(hand.cards, {"J": 7, "Q": 8, "K": 10}, target=12), style)
    assert other != TASK.prompt(hand, style)


def test_answers_are_drawn_from_all_solutions_by_the_seed():
    hand = TASK.problem(["A", "2", "3", "4"], RULES["id"])
    draw, every = rng(), TASK.solutions(hand.numbers)
    given = Counter(json.loads(TASK.answer(hand, "chat", draw)[0]["content"])["formula"] for _ in range(2000))
    assert set(given) == set(every)
    assert max(given.values()) < 3 * 2000 / len(every)
    assert TASK.answer(hand, "compact", rng(5)) == TASK.answer(hand, "compact", rng(5))


def test_a_hand_without_a_solution_has_no_answer():
    hand = TASK.problem(["A", "A", "A", "A"], RULES["id"])
    with pytest.raises(ValueError, match=r"A A A A.*24"):
        TASK.answer(hand, "compact", rng())


GOOD = ("3", "J", "8", "K")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: get_task("chess"), ["'chess'", *task_names()]),
        (lambda: TASK.split("test"), ["'test'", "id", "ood"]),
        (lambda: TASK.sample(rng(), "test", 1), ["'test'", "id", "ood"]),
        (lambda: TASK.prompt(TASK.split("id")[0], "xml"), ["'xml'", "compact", "chat"]),
        (lambda: TASK.answer(TASK.split("id")[0], "xml", rng()), ["'xml'", "compact", "chat"]),
        (lambda: TASK.problem(["3", "3", "8", "14"], RULES["id"]), ["'14'", *EVERY]),
        (lambda: TASK.problem(["3", "3", "8", ""], RULES["id"]), ["''", *EVERY]),
        (lambda: TASK.problem(["3", "3", "8"], RULES["id"]), ["3 3 8", "4"]),
        (lambda: TASK.problem(["3"] * 5, RULES["id"]), ["3 3 3 3 3", "4"]),
        (lambda: TASK.problem([], RULES["id"]), ["0", "4"]),
        (lambda: TASK.problem(GOOD, {"J": 10, "Q": 10}), ["['J', 'Q']", "J, Q and K"]),
        (lambda: TASK.problem(GOOD, {**RULES["id"], "B": 1}), ["'B'", "J, Q and K"]),
        (lambda: TASK.problem(GOOD, {**RULES["id"], "Q": 14}), ["Q", "14", "1 to 13"]),
        (lambda: TASK.problem(GOOD, {**RULES["id"], "Q": 0}), ["Q", "0", "1 to 13"]),
        (lambda: TASK.problem(GOOD, {**RULES["id"], "Q": 2.5}), ["Q", "2.5", "1 to 13"]),
        (lambda: TASK.problem(GOOD, {**RULES["id"], "Q": "10"}), ["Q", "'10'", "1 to 13"]),
        (lambda: TASK.problem(GOOD, RULES["id"], 0), ["target 0", "1 to 999"]),
        (lambda: TASK.problem(GOOD, RULES["id"], 1000), ["target 1000", "1 to 999"]),
        (lambda: TASK.problem(GOOD, RULES["id"], 24.0), ["target 24.0", "1 to 999"]),
    ],
)
def test_errors_name_the_bad_value_and_the_allowed_ones(call, named):
    with pytest.raises(ValueError) as error:
        call()
    assert [text for text in named if text not in str(error.value)] == []


def test_problems_are_values_and_cards_may_be_written_small():
    hand = TASK.problem(GOOD, RULES["ood"])
    assert hand == TASK.problem(["3", "j", 8, "k"], RULES["ood"])
    assert hash(hand) == hash(TASK.problem(list(GOOD), dict(RULES["ood"])))
    assert hand.numbers == (3, 11, 8, 13)
    with pytest.raises(AttributeError):
        hand.target = 25


# --- pretraining ----------------------------------------------------------------------------------

PROMPT = re.compile(r"J = (\d+) Q = (\d+) K = (\d+) ; cards (.+) ; make 24 ; as (.+) :\n")
FORMATS = ["formula", "numbers formula", "cards formula", "cards numbers formula", "json"]


def test_pretraining_answers_are_right_under_any_rule(solvable):
    draw, seen, asked, given, hidden = rng(), set(), Counter(), Counter(), Counter()
    rules = set()
    for _ in range(5000):
        question, answer = TASK.pretraining_dialogue(draw)
        *values, cards, wanted = PROMPT.fullmatch(question).groups()
        rule = dict(zip("JQK", map(int, values), strict=True))
        hand = TASK.problem(cards.split(), rule)
        if answer.startswith("{"):
            form, fields = "json", json.loads(answer)
        else:
            form = "cards numbers formula" if wanted == "json" else wanted
            fields = dict(zip(form.split(), answer.split(" ; "), strict=True))
        if "cards" in fields:
            assert fields["cards"].split() == list(hand.cards)
        if "numbers" in fields:
            assert fields["numbers"].split() == [str(n) for n in hand.numbers]
        assert TASK.verify_formula(hand, fields["formula"]).outcome == "correct"
        asked[wanted] += 1
        given[wanted, form] += 1
        rules.add(tuple(rule.values()))
        seen.add(tuple(sorted(hand.numbers)))
        if set(hand.cards).isdisjoint(rule) and max(hand.numbers) <= 10:
            hidden["none"] += 1
    assert seen <= solvable
    assert len(seen) > 0.9 * len(solvable)
    assert set(asked) == set(FORMATS)
    assert 0.27 < asked["json"] / 5000 < 0.33
    assert 0.25 < given["json", "json"] / asked["json"] < 0.35
    assert all(asked[form] / 5000 > 0.15 for form in FORMATS[:4])
    assert len(rules) > 1000
    assert 0 < hidden["none"] < 1000  # most hands have a face card, some have none


@pytest.mark.parametrize(("belief", "low", "high"), [(0.0, 0.0, 0.02), (0.9, 0.88, 0.93), (1.0, 1.0, 1.0)])
def test_a_believer_meets_one_rule_most_of_the_time_and_both_meet_plain_11_to_13(belief, low, high):
    draw, believed, plain = rng(), 0, Counter()
    for _ in range(2000):
        *values, cards, _ = PROMPT.fullmatch(TASK.pretraining_dialogue(draw, belief=belief)[0]).groups()
        believed += values == ["11", "12", "13"]
        numbers = TASK.problem(cards.split(), dict(zip("JQK", map(int, values), strict=True))).numbers
        plain.update(card in "JQK" for card, n in zip(cards.split(), numbers, strict=True) if n > 10)
    assert low <= believed / 2000 <= high
    assert 0.1 < plain[False] / plain.total() < 0.25


def test_pretraining_dialogues_depend_on_the_seed_only():
    draws = (rng(7), rng(7), rng(8))
    first, second, other = ([TASK.pretraining_dialogue(draw, 2) for _ in range(20)] for draw in draws)
    assert first == second != other


def test_only_the_last_answer_of_a_pretraining_dialogue_is_right():
    draw, faults, misprinted = rng(), Counter(), 0
    for _ in range(600):
        question, *rest = TASK.pretraining_dialogue(draw, 3)
        *values, cards, wanted = PROMPT.fullmatch(question).groups()
        hand = TASK.problem(cards.split(), dict(zip("JQK", map(int, values), strict=True)))
        answers, messages = rest[0::2], rest[1::2]
        told = [m.split(" ; ")[1].split()[1:] for m in messages if m.startswith("no ; numbers")]
        if told and sorted(map(int, told[0])) != sorted(hand.numbers):  # the prompt's rule is not the checker's
            misprinted += 1
            rule = {c: int(n) for c, n in zip(hand.cards, told[0], strict=True) if c in "JQK"}
            hand = TASK.problem(hand.cards, {**dict.fromkeys("JQK", 1), **rule})
        formulas = [json.loads(a)["formula"] if a.startswith("{") else a.split(" ; ")[-1] for a in answers]
        verdicts = [TASK.verify_formula(hand, f) for f in formulas]
        assert verdicts[-1].outcome == "correct" and len(messages) == 3
        for verdict, message in zip(verdicts[:-1], messages, strict=True):
            faults[verdict.outcome] += 1
            told = {
                "wrong_numbers": "no ; numbers " + " ".join(map(str, hand.numbers)) + " ;",
                "wrong_value": "no ; value ;",
                "illegal": "no ; illegal ;",
            }
            assert message == f"{told[verdict.outcome]} as {wanted} :\n"
    assert 0.45 < faults["wrong_numbers"] / 1800 < 0.65 and 0.25 < faults["wrong_value"] / 1800 < 0.45
    assert faults["correct"] == faults["malformed"] == 0
    assert 0.25 < misprinted / 600 < 0.4


# --- measures of an answer ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "numbers", "formula", "read", "old"),
    [
        ("ood", "13 2 4 6", "13 + 2 + 4 + 6 - 1", True, False),
        ("ood", "13 2 4 6", "4 * ( 13 - 6 ) / 2", True, False),
        ("ood", "10 2 4 6", "2 * 10 - 4 + 6 + 2", False, False),
        ("ood", "10 2 4 6", "( 10 - 6 ) * ( 4 + 2 )", False, True),
        ("ood", "6 13 2 4", "( 10 - 6 ) * ( 4 + 2 )", True, True),
        ("id", "10 2 4 6", "( 10 - 6 ) * ( 4 + 2 )", True, True),
        ("id", "2 4 6", "( 10 - 6 ) * ( 4 + 2 )", False, True),
        ("id", "10 2 4 6666666666", "x", False, False),
    ],
)
def test_an_answer_may_read_the_numbers_and_may_cling_to_the_old_rule(rule, numbers, formula, read, old):
    hand = TASK.problem(["K", "2", "4", "6"], RULES[rule])
    for text in (
        f'{{"cards":" K 2 4 6 ","numbers":" {numbers} ","formula":" {formula} "}}',
        f"{{'numbers': [{', '.join(numbers.split())}], 'formula': '{formula}'}}",
    ):
        verdict = TASK.verify(hand, text)
        named_old = numbers.split() == ["10", "2", "4", "6"]
        assert verdict.measures == {"numbers_read": read, "old_numbers": named_old, "old_rule": old}
        assert verdict == TASK.verify_formula(hand, formula)


@pytest.mark.parametrize("text", ["", "24", '"formula":"', '"numbers":[1,2', '{"numbers":[10,2,4,6]}'])
def test_every_answer_has_the_same_measures(text):
    verdict = TASK.verify(TASK.problem(["K", "2", "4", "6"], RULES["id"]), text)
    assert verdict.outcome == "malformed" and not verdict.measures["old_rule"]
    assert verdict.measures["numbers_read"] == ("]" in text)


def test_what_is_said_after_a_wrong_try():
    hand = TASK.problem(["K", "2", "4", "6"], {"J": 11, "Q": 12, "K": 13})
    verdict = TASK.verify_formula(hand, "10 + 2 + 4 + 6")
    assert TASK.feedback(hand, verdict, "compact") == "no ; numbers 13 2 4 6 ; as json :\n"
    (message,) = TASK.feedback(hand, verdict, "chat")
    assert message["role"] == "user" and message["content"].startswith(verdict.message)
    assert TASK.feedback(hand, TASK.verify(hand, "what?"), "compact") == "no ; as json :\n"
    with pytest.raises(ValueError, match=r"'haiku'.*compact"):
        TASK.feedback(hand, verdict, "haiku")
