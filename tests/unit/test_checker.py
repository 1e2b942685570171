"""The checker of GeneralPoints against the rules of the paper, Python's own parser, and hostile input."""

import ast
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from oodlib.tasks.base import OUTCOMES, get_task

TASK = get_task("general_points")
RULE = {"J": 11, "Q": 12, "K": 13}
HAND = TASK.problem(["3", "3", "8", "8"], RULE)  # 8/(3-8/3) is the only way
OTHERS = ("2 7 10 Q", "A 2 3 4", "6 6 6 6", "J K A 2")
HANDS = [HAND, *(TASK.problem(cards.split(), RULE) for cards in OTHERS)]
RIGHT = "8/(3-8/3)"
MILLION = 1_000_000

CASES = [
    # correct: +5
    (RIGHT, "correct", 5),
    (" 8 / ( 3 - 8 / 3 ) ", "correct", 5),
    ("8\t/\n(3-8\r\n/3)", "correct", 5),
    ("(8)/((3-(8/3)))", "correct", 5),
    (RIGHT + "=24", "correct", 5),
    (RIGHT + " = 24 \n", "correct", 5),
    # no fault but another value: -1
    ("8+8+3+3", "wrong_value", -1),
    ("8/3-8/3", "wrong_value", -1),
    ("3-8-3-8", "wrong_value", -1),
    ("8+8+3+3 = 24", "wrong_value", -1),
    ("8/(3-3)+8", "wrong_value", -1),
    ("(3-3)/(8-8)", "wrong_value", -1),
    # numbers that are not there or used too often -2, numbers left out a further -2
    (RIGHT + "+1", "wrong_numbers", -2),
    (RIGHT + "+0", "wrong_numbers", -2),
    (RIGHT + "*1/1", "wrong_numbers", -2),
    (RIGHT + "+3-3", "wrong_numbers", -2),
    ("8*3", "wrong_numbers", -2),
    ("8", "wrong_numbers", -2),
    ("24", "wrong_numbers", -4),
    ("8+8+8", "wrong_numbers", -4),
    ("1/0", "wrong_numbers", -4),
    ("8/(3-8/33)", "wrong_numbers", -4),
    ("08/(3-8/3)", "wrong_numbers", -4),
    ("8/(3-8/0003)", "wrong_numbers", -4),
    ("9" * 10_000, "wrong_numbers", -4),
    # grammar: -3 for each fault
    ("-8/(3-8/3)", "illegal", -3),
    ("8/(-3-8/3)", "illegal", -3),
    ("8-+3-8/3", "illegal", -3),
    ("8--3-8/3", "illegal", -3),
    ("8**3-8/3", "illegal", -3),
    ("8//3-8/3", "illegal", -3),
    ("8* *3-8/3", "illegal", -3),
    ("8 8/3-3", "illegal", -3),
    ("8(3-8/3)", "illegal", -3),
    ("(8-3)8/3", "illegal", -3),
    ("(8/3)(8-3)", "illegal", -3),
    (RIGHT + "+", "illegal", -3),
    ("(" + RIGHT, "illegal", -3),
    (RIGHT + ")", "illegal", -3),
    (RIGHT + ")))", "illegal", -9),
    ("(((" + RIGHT, "illegal", -9),
    ("+" + RIGHT + "*", "illegal", -6),
    # grammar and numbers add up
    (RIGHT + "3", "illegal", -5),
    ("8**3", "illegal", -5),
    ("9 9", "illegal", -7),
    ("", "illegal", -5),
    (" \t\n", "illegal", -5),
    ("=24", "illegal", -5),
    ("()", "illegal", -5),
    ("+", "illegal", -8),
    # characters that no formula has: -3, whatever else is wrong
    *((text, "illegal", -3) for text in (
        RIGHT + "=25", RIGHT + "=", RIGHT + "==24", RIGHT + "=24=24", RIGHT + "=024", "24=" + RIGHT,
        "8.0/(3-8/3)", "[8]/(3-8/3)", "8^3", "8_0", "8e1", "0x8", "8,3", "8;3", "$", "n", "^", "n/(n-n/n)",
        "8−3", "8×3", "8÷3", "8\N{NO-BREAK SPACE}/(3-8/3)", "8\v/(3-8/3)", "8\0/(3-8/3)", "\0",
        "٨/(٣-٨/٣)", "８/(３-８/３)", "8/(3-8/³)", "८/(३-८/३)", "８", "\ud800", "\U0010ffff",
        "x))))((((++", '8/(3-8/3)"', "8/(3-8/3)'", r"8\/(3-8\/3)", "__import__('os')",
    )),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "outcome", "reward"), CASES, ids=lambda x: ascii(x)[:30])
def test_outcome_and_reward_of_a_formula(formula, outcome, reward):
    verdict = TASK.verify_formula(HAND, formula)
    assert (verdict.outcome, verdict.reward) == (outcome, reward)
    assert 0 < len(verdict.message) < 300


@pytest.mark.parametrize(
    ("formula", "says"),
    [
        ("8+8+3+3", " 22,"),
        ("8+3+3/8", " 91/8,"),
        ("(3+3)/(8+8)", " 3/8,"),
        ("3/8-3-8", " -85/8,"),
        ("8/(3-3)*8", "zero"),
    ],
)
def test_the_message_says_what_the_formula_makes(formula, says):
    assert says in TASK.verify_formula(HAND, formula).message


def test_face_cards_count_for_what_the_rule_says():
    cards = ["J", "K", "A", "2"]
    other = TASK.problem(cards, {"J": 10, "Q": 10, "K": 10})
    assert TASK.verify_formula(TASK.problem(cards, RULE), "(13-11)*(2+1)").outcome == "wrong_value"
    assert TASK.verify_formula(other, "(13-11)*(2+1)").outcome == "wrong_numbers"
    assert TASK.verify_formula(other, "10+10+1+2").outcome == "wrong_value"


def test_the_target_of_the_problem_counts():
    hand = TASK.problem(["3", "3", "8", "8"], RULE, target=22)
    assert TASK.verify_formula(hand, "8+8+3+3 = 22").outcome == "correct"
    assert TASK.verify_formula(hand, "8+8+3+3 = 24").outcome == "illegal"
    assert TASK.verify_formula(hand, RIGHT).outcome == "wrong_value"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"cards": ["3","3","8","8"], "numbers": [3,3,8,8], "formula": "8/(3-8/3)"}', "correct"),
        ("{'cards': ['3','3','8','8'], 'formula': '8/(3-8/3)'}", "correct"),
        ("""{'formula' : "8/(3-8/3)"}""", "correct"),
        ('{"formula"\n:\n"8/(3-8/3)=24"', "correct"),
        ('Let me think.\n```json\n{"formula": "8/(3-8/3)"}\n``` Done.', "correct"),
        ('{"formula": "8+8", "formula": "8/(3-8/3)"}', "correct"),
        ('{"formula": {"formula": "8/(3-8/3)"}}', "correct"),
        ('{"formula": "8+8"} no, rather {"formula": "8/(3-8/3)"}', "correct"),
        ('{"formula": "8/(3-8/3)"} no, rather {"formula": "8+8+3+3"}', "wrong_value"),
        ('{"formula": "8*3"}', "wrong_numbers"),
        ('{"formula": ""}', "illegal"),
        ('{"formula": "8/(3-8/3)', "malformed"),
        ("""{"formula": "8/(3-8/3)'}""", "malformed"),
        ('{"formula": "8/(3-8/3)"} and {"formula": "8/', "malformed"),
        ('{"formula": 24}', "malformed"),
        ('{"formula": ["8/(3-8/3)"]}', "malformed"),
        ("{formula: 8/(3-8/3)}", "malformed"),
        ('{"Formula": "8/(3-8/3)"}', "malformed"),
        ('{"formulas": "8/(3-8/3)"}', "malformed"),
        (RIGHT, "malformed"),
        ("", "malformed"),
        ("\0", "malformed"),
    ],
)
def test_finding_the_formula_in_an_answer(text, outcome):
    verdict = TASK.verify(HAND, text)
    assert verdict.outcome == outcome
    if outcome == "malformed":
        assert verdict.reward == -3


# --- properties -----------------------------------------------------------------------------------

fast = settings(max_examples=200, deadline=None, database=None)
alphabet_text = st.text(alphabet="0123456789+-*/() \n=", max_size=30)


def right_by_python(numbers, target, formula):
    """Whether Python's parser reads a sum over exactly these numbers that makes the target."""
    left = Counter(numbers)

    def value(node):
        match node:
            case ast.Constant(value=int(number)):
                left[number] -= 1
                return Fraction(number)
            case ast.BinOp(a, ast.Add(), b):
                return value(a) + value(b)
            case ast.BinOp(a, ast.Sub(), b):
                return value(a) - value(b)
            case ast.BinOp(a, ast.Mult(), b):
                return value(a) * value(b)
            case ast.BinOp(a, ast.Div(), b):
                return value(a) / value(b)
        raise SyntaxError("no formula of the game")

    try:
        made = value(ast.parse(" ".join(formula.split()), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return False
    return made == target and not any(left.values())


def reward_of_tokens(numbers, target, tokens):
    """The paper's reward of a list of tokens, fault by fault."""
    faults = depth = 0
    for before, token in zip(["(", *tokens], [*tokens, ")"], strict=True):  # ends behave as brackets
        after_operand = before == ")" or before.isdigit()
        faults += after_operand == (token == "(" or token.isdigit())
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token, 0)
        if depth < 0:
            faults, depth = faults + 1, 0
    used = Counter(t for t in tokens if t.isdigit())
    hand = Counter(map(str, numbers))
    faults = 3 * (faults + depth) + 2 * bool(used - hand) + 2 * bool(hand - used)
    if faults:
        return -faults
    return 5 if right_by_python(numbers, target, " ".join(tokens)) else -1


@st.composite
def tokens_of(draw, hand, damage=2):
    """Tokens of a formula on the hand's numbers: often right, often damaged."""

    def build(numbers):
        if len(numbers) == 1:
            return [str(numbers[0])]
        cut = draw(st.integers(1, len(numbers) - 1))
        inner = [*build(numbers[:cut]), draw(st.sampled_from("+-*/")), *build(numbers[cut:])]
        return ["(", *inner, ")"] if draw(st.booleans()) else inner

    ways = TASK.solutions(hand.numbers)
    if ways and draw(st.booleans()):
        tokens = list(draw(st.sampled_from(ways)).translate({ord(c): f" {c} " for c in "+-*/()"}).split())
    else:
        tokens = build(draw(st.permutations(hand.numbers)))
    for _ in range(draw(st.integers(0, damage))):
        at = draw(st.integers(0, len(tokens)))
        marks = ["", *"+-*/()", *map(str, hand.numbers), "0", "08", "24"]
        new = [mark for mark in [draw(st.sampled_from(marks))] if mark]
        tokens[at : at + draw(st.integers(0, 1))] = new
    return tokens


@fast
@given(
    st.sampled_from(HANDS),
    st.text(max_size=200) | alphabet_text | st.text(alphabet="\"'formula: 38-/()=24{}"),
)
@example(HAND, "\ud800")
def test_no_text_raises_and_only_correct_answers_are_rewarded(hand, text):
    field = '{"formula": "' + text + '"}'
    for verdict in (TASK.verify(hand, text), TASK.verify(hand, field), TASK.verify_formula(hand, text)):
        assert verdict.outcome in OUTCOMES
        assert len(verdict.message) < 300
        assert verdict.reward == 5 if verdict.outcome == "correct" else verdict.reward < 0


@fast
@given(st.data(), st.sampled_from(HANDS))
def test_correct_means_correct_to_pythons_parser(data, hand):
    tokens = data.draw(tokens_of(hand))
    for text in (" ".join(tokens), "".join(tokens)):
        right = TASK.verify_formula(hand, text).outcome == "correct"
        assert right == right_by_python(hand.numbers, hand.target, text)


@fast
@given(st.sampled_from(HANDS), alphabet_text.filter(lambda text: "=" not in text))
def test_random_text_of_the_formula_alphabet_agrees_with_pythons_parser(hand, text):
    right = TASK.verify_formula(hand, text).outcome == "correct"
    assert right == right_by_python(hand.numbers, hand.target, text)


@fast
@given(st.data(), st.sampled_from(HANDS))
def test_rewards_are_the_sum_of_the_faults(data, hand):
    tokens = data.draw(tokens_of(hand, damage=6))
    verdict = TASK.verify_formula(hand, " ".join(tokens))
    assert verdict.reward == reward_of_tokens(hand.numbers, hand.target, tokens)


@fast
@given(st.data(), st.sampled_from(HANDS))
def test_blanks_between_tokens_change_nothing(data, hand):
    tokens = data.draw(tokens_of(hand))
    blanks = st.text(alphabet=" \t\r\n", max_size=3)
    text = data.draw(blanks)
    for before, token in zip(["", *tokens], tokens, strict=False):
        text += " " * (before.isdigit() and token.isdigit()) + data.draw(blanks) + token
    text += data.draw(blanks)
    assert TASK.verify_formula(hand, text) == TASK.verify_formula(hand, " ".join(tokens))


# --- hostile input: the time-out only guards against a hang ---------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["(", ")", "()", "1", "0", "1 ", "1+", "8/", "+", "**", " ", "\n", "=", "=24", '"', "'", "\\", "x", "\0",
     "٣", '"formula"', "'formula' ", '"formula":"', '"formula":"8/(3-8/3)"', "{", "[", '{"formula":'],
    ids=ascii,
)  # fmt: skip
def test_a_million_of_the_same(text):
    text *= MILLION // len(text)
    answers = (text, '"formula":"' + text + '"', '"formula"' + text)
    for verdict in (TASK.verify(HAND, answer) for answer in answers):
        assert len(verdict.message) < 300
        assert verdict.outcome == "correct" or verdict.reward < 0


@pytest.mark.timeout(20)
def test_deep_brackets_and_long_blanks_can_still_be_right():
    half = MILLION // 2
    assert TASK.verify_formula(HAND, "(" * half + RIGHT + ")" * half).outcome == "correct"
    blanks = " \n" * half
    assert TASK.verify_formula(HAND, f"{blanks}{RIGHT}{blanks}={blanks}24{blanks}").outcome == "correct"
    assert TASK.verify(HAND, f'"formula"{blanks}:{blanks}"{RIGHT}"').outcome == "correct"
