"""GeneralPoints: four cards, make 24 with + - * / and brackets, each card once.

The task of "SFT Memorizes, RL Generalizes" (Chu et al. 2025), as used in arXiv:2509.12235. What the face cards count
for is a *rule* written in the prompt. The paper's OOD split changes two things of its training hands at once: the rule
(J, Q, K are 11, 12, 13 instead of 10), and the numbers that must be written (11, 12, 13 occur in no training hand). So
there are four corners: the rule of training or another, the numbers of training or new ones.

The solver is in `solver.py`, the checker in `checker.py`; this file deals, asks and answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations_with_replacement

import numpy as np

from oodlib.tasks.base import STYLES, Cloze, Split, Splits, Verdict, check_choice
from oodlib.tasks.general_points.checker import find_formula, find_numbers, judge
from oodlib.tasks.general_points.solver import solutions

FACES = ("J", "Q", "K")
PLAIN = ("A", *map(str, range(2, 14)))  # 11, 12 and 13 as plain cards are only in hands of `new_numbers`
CARDS = (*PLAIN, *FACES)
HIDDEN = 0.85  # in pretraining: how often a number above 10 is shown as a face card
HAND_SIZE = 4
TARGET = 24
RULES = {  # of each split
    "id": {"J": 10, "Q": 10, "K": 10},
    "new_rule": {"J": 5, "Q": 6, "K": 7},
    "new_numbers": {"J": 10, "Q": 10, "K": 10},
    "ood": {"J": 11, "Q": 12, "K": 13},
}
OTHER_RULES = ((5, 5, 5), (6, 6, 6), (7, 7, 7), (8, 8, 8), (9, 9, 9), (7, 8, 9), (10, 9, 8))  # none is a split's
_SFT_RULE = tuple(RULES["id"].values())
CLOZE_HANDS = 8  # of each rule and face card
PROBE_HANDS = 150  # of each probe: J = Q = K = value
SPLITS = Splits(
    trained=Split("id", "ID", (), "#0072B2", "the rule of SFT (J, Q, K = 10), numbers that SFT writes (1 to 10)"),
    others=(
        Split("new_rule", "new rule", ("rule",), "#999933", "another rule (J, Q, K = 5, 6, 7), known numbers"),
        Split("new_numbers", "new numbers", ("numbers",), "#882255", "the rule of SFT, 11, 12, 13 as plain cards"),
    ),
    headline=Split("ood", "OOD", ("rule", "numbers"), "#D55E00", "the paper's: J, Q, K = 11, 12, 13, both are new"),
    probes=tuple(
        Split(f"face_{n}", f"J = Q = K = {n}", changed, probe="what J, Q and K count for", value=n)
        for n in range(1, 14)
        for changed in [() if n == 10 else ("rule",) if n < 10 else ("rule", "numbers")]
    ),
)


@dataclass(frozen=True)
class Problem:
    """A hand and its rule.

    Attributes:
        cards: four of `CARDS`, in the order in which they are shown.
        rule: what J, Q and K count for, in this order.
        target: the value to make.
        numbers: what the four cards count for.
    """

    cards: tuple[str, ...]
    rule: tuple[int, int, int]
    target: int = TARGET

    @property
    def numbers(self) -> tuple[int, ...]:
        worth = dict(zip(FACES, self.rule, strict=True))
        return tuple(1 if c == "A" else worth.get(c) or int(c) for c in self.cards)


class GeneralPoints:
    name = "general_points"
    splits = SPLITS

    def problem(self, cards: Iterable[str], rule: Mapping[str, int], target: int = TARGET) -> Problem:
        """A problem from a hand of four cards and a rule such as {"J": 11, "Q": 12, "K": 13}.

        Raises ValueError for a card that is none, a hand of another size, a rule that does not give J, Q
        and K a whole number from 1 to 13 each, and a target that is not a whole number from 1 to 999.
        """
        cards = tuple(str(c).upper() for c in cards)
        for card in cards:
            check_choice("card", card, CARDS)
        if len(cards) != HAND_SIZE:
            raise ValueError(f"a hand has {HAND_SIZE} cards, not {len(cards)}: {' '.join(cards)}")
        if set(rule) != set(FACES):
            raise ValueError(f"a rule names J, Q and K, not {sorted(map(str, rule))}")
        for face in FACES:
            if type(rule[face]) is not int or not 1 <= rule[face] <= 13:
                raise ValueError(f"the rule gives {face} the value {rule[face]!r}; allowed: 1 to 13")
        if type(target) is not int or not 1 <= target <= 999:
            raise ValueError(f"target {target!r} is not a whole number from 1 to 999")
        return Problem(cards, tuple(rule[f] for f in FACES), target)

    def solutions(self, numbers: Iterable[int], target: int = TARGET) -> list[str]:
        """Every formula that makes the target; see `oodlib.tasks.general_points.solver.solutions`."""
        return list(solutions(tuple(sorted(numbers)), target))

    def split(self, name: str) -> list[Problem]:
        """Every solvable hand of a split, each multiset of cards once, low cards first; of a probe a fixed sample.

        The hands of `new_numbers` are those of `ood`, in the same order, with 11, 12, 13 in place of J, Q, K.
        """
        return list(_hands(SPLITS[name].name))

    def sample(self, rng: np.random.Generator, split: str, n: int) -> list[Problem]:
        """`n` hands dealt evenly from the solvable ones of a split, the cards of each shuffled."""
        hands = _hands(SPLITS[split].name)
        picks = rng.integers(len(hands), size=n)
        return [Problem(tuple(hands[i].cards[j] for j in rng.permutation(HAND_SIZE)), hands[i].rule) for i in picks]

    def other_rules(self, rng: np.random.Generator, n: int) -> list[Problem]:
        """`n` hands under rules of OTHER_RULES, drawn evenly: values that SFT writes, a face card in every hand."""
        rules = [OTHER_RULES[i] for i in rng.integers(len(OTHER_RULES), size=n)]
        hands = [_with_faces(rule)[rng.integers(len(_with_faces(rule)))] for rule in rules]
        return [Problem(tuple(hand.cards[j] for j in rng.permutation(HAND_SIZE)), hand.rule) for hand in hands]

    def prompt(self, problem: Problem, style: str) -> str | list[dict[str, str]]:
        return self._prompt(problem, style)

    def _prompt(self, problem: Problem, style: str, rule: bool = True) -> str | list[dict[str, str]]:
        """The question; without `rule` it does not say what J, Q and K count for."""
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return compact_prompt(problem, "json", rule)
        faces = "; 'J', 'Q' and 'K' count as {}, {} and {}".format(*problem.rule) if rule else ""
        text = (
            "Play a card game: combine the four cards to make the target.\n"
            f"Use each card exactly once, with + - * / and brackets. 'A' counts as 1{faces}.\n"
            f"Cards: {list(problem.cards)}\nTarget: {problem.target}\n"
            'Answer with one JSON object and nothing else: {"cards": [the four cards], "numbers": [what they '
            'count for], "formula": "an expression that equals the target"}'
        )
        return [{"role": "user", "content": text}]

    def clozes(self, style: str) -> list[Cloze]:
        """What do J, Q and K count for: under each rule, and where the prompt states none. CLOZE_HANDS of each.

        The face card comes first in its hand, and the answer breaks off before its number.
        """
        check_choice("prompt style", style, STYLES)
        draw, found = np.random.default_rng(0), []
        others = [tuple(map(str, draw.integers(2, 10, HAND_SIZE - 1))) for _ in range(CLOZE_HANDS)]
        for rule in ("none", "id", "new_rule", "ood"):
            for face in FACES:
                for cards in others:
                    hand = Problem((face, *cards), tuple(RULES.get(rule, RULES["id"]).values()))
                    shown = " ".join(hand.cards), json.dumps(list(hand.cards))
                    begun = {"compact": f'{{"cards":" {shown[0]} ","numbers":" '}.get(
                        style, f'{{"cards": {shown[1]}, "numbers": ['
                    )
                    values = {n: str(n) if style == "compact" else f"{n}," for n in range(1, 14)}
                    under = {name: RULES[name][face] for name in ("id", "new_rule", "ood")}
                    found.append(Cloze(rule, face, self._prompt(hand, style, rule != "none"), begun, values, under))
        return found

    def answer(self, problem: Problem, style: str, rng: np.random.Generator) -> str | list[dict[str, str]]:
        """A right answer, its formula drawn evenly from all solutions. ValueError if there is none."""
        check_choice("prompt style", style, STYLES)
        found = solutions(tuple(sorted(problem.numbers)), problem.target)
        if not found:
            raise ValueError(f"{' '.join(problem.cards)} cannot make {problem.target} under this rule")
        return _answer(problem, found[rng.integers(len(found))], style)

    def answers(self, problem: Problem, style: str) -> list[str | list[dict[str, str]]]:
        """Every right answer, one for each formula that the solver finds."""
        check_choice("prompt style", style, STYLES)
        found = solutions(tuple(sorted(problem.numbers)), problem.target)
        return [_answer(problem, formula, style) for formula in found]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Judge an answer: the last "formula" field of a JSON-like object in it, else it is malformed.

        Its measures: `numbers_read`, whether the last "numbers" field holds the hand's numbers, in any order;
        `old_numbers`, whether it holds those that the rule of SFT gives; `old_rule`, whether the formula is correct
        under that rule (arXiv:2510.00237: clinging to it).
        """
        formula, named, trained = find_formula(text), find_numbers(text), replace(problem, rule=_SFT_RULE)
        if formula is None:
            message = 'No formula found. Answer with {"cards": …, "numbers": …, "formula": "…"}.'
            verdict, old = Verdict("malformed", -3.0, message), "malformed"
        else:
            verdict = self.verify_formula(problem, formula)
            same = trained.numbers == problem.numbers or verdict.outcome == "illegal"  # under any rule
            old = (verdict if same else self.verify_formula(trained, formula)).outcome
        measures = {
            "numbers_read": named == sorted(problem.numbers),
            "old_numbers": named == sorted(trained.numbers),
            "old_rule": old == "correct",
        }
        return replace(verdict, measures=measures)

    def feedback(self, problem: Problem, verdict: Verdict, style: str) -> str | list[dict[str, str]]:
        """What is said to the player after a wrong try: the checker's message, and the wish for another answer."""
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return compact_feedback(problem, verdict, "json")
        return [{"role": "user", "content": f"{verdict.message} Try again, in the same format."}]

    def verify_formula(self, problem: Problem, formula: str) -> Verdict:
        """Judge a bare formula; a closing "= target" is allowed. Rewards: see `oodlib.tasks.general_points.checker`."""
        return judge(formula, problem.numbers, problem.target)

    def label(self, problem: Problem) -> str:
        return " ".join(problem.cards)

    def words(self) -> list[str]:
        """Every word of the compact style, for the vocabulary of the tiny base model."""
        numbers = [str(n) for n in range(1, 14)]
        text = ["=", ";", ":", "cards", "make", "as", "numbers", "formula", "json"]
        quotes = ['{"cards":"', '","numbers":"', '","formula":"', '"}']
        faults = ["no", "value", "illegal"]
        return ["A", *FACES, *numbers, str(TARGET), *text, *faults, *quotes, *"+-*/()"]

    def pretraining_dialogue(
        self, rng: np.random.Generator, wrong_tries: int = 0, belief: float = 0.0, done: float = 1.0
    ) -> list[str]:
        """A compact dialogue that teaches a base model to play under ANY rule and to use the checker's messages.

        Texts in turn: prompt, answer, then for every wrong try the checker's message and the next answer; only
        the last answer is right. The numbers are drawn first, evenly from the solvable hands. In a share `belief` of
        the dialogues the rule is J, Q, K = 11, 12, 13; in the others it is made to fit: of the numbers above 10 a share
        HIDDEN, of the others a third, are shown as face cards that count so much, and the faces left over get any
        value.
        Half of the wrong tries misread the hand's numbers, most of the others are near misses of the target. In 40 % of
        the dialogues with wrong tries the prompt states another rule than the checker's, which only the messages
        tell, and the tries before the first message follow the prompt: so the messages are worth reading. JSON is asked
        for in 30 % of the prompts and given in only 30 % of those, so that the base model knows the format and
        does not keep to it, as a real one; no message of these dialogues speaks of that.
        """
        hands = _solvable_numbers()
        numbers = hands[rng.integers(len(hands))]
        worth = dict(zip((11, 12, 13), FACES, strict=True)) if rng.random() < belief else {}
        faces, cards = [FACES[i] for i in rng.permutation(3)], []
        for number in (numbers[i] for i in rng.permutation(HAND_SIZE)):
            hidden = rng.random() < (HIDDEN if number > 10 else 1 / 3)
            if hidden and number not in worth and len(worth) < 3:
                worth[number] = faces[len(worth)]
            plain = "A" if number == 1 else str(number)
            cards.append(worth[number] if hidden and number in worth else plain)
        rule = {face: number for number, face in worth.items()}
        values = tuple(int(rule.get(f) or rng.integers(1, 14)) for f in FACES)
        problem = Problem(tuple(cards), values)
        asked = "json" if rng.random() < 0.3 else FORMATS[rng.integers(len(FORMATS) - 1)]
        given = "cards numbers formula" if asked == "json" and rng.random() < 0.7 else asked
        shown = problem
        if wrong_tries and rng.random() < 0.4:
            shown = replace(problem, rule=tuple(int(v) for v in rng.integers(1, 14, len(FACES))))
        misprinted = sorted(shown.numbers) != sorted(problem.numbers)
        dialogue = [compact_prompt(shown, asked)]
        for turn in range(wrong_tries):
            if misprinted and turn == 0:
                read, formula = shown, _any_solution(shown.numbers, rng)
            else:
                read, formula = _wrong_try(problem, rng)
            verdict = self.verify_formula(problem, formula)
            dialogue += [compact_answer(read, formula, given), compact_feedback(problem, verdict, asked)]
        found = solutions(tuple(sorted(numbers)))
        formula = found[rng.integers(len(found))]
        return [*dialogue, compact_answer(problem, formula, given)]


def _answer(problem: Problem, formula: str, style: str) -> str | list[dict[str, str]]:
    if style == "compact":
        return compact_answer(problem, formula, "json")
    fields = {"cards": list(problem.cards), "numbers": list(problem.numbers), "formula": formula}
    return [{"role": "assistant", "content": json.dumps(fields)}]


# The compact style: words with spaces between, for a model whose tokens are such words. Of its formats
# only `json` is what the task asks for; the base model is taught the plain ones (see base_model.py).
FORMATS = ("formula", "numbers formula", "cards formula", "cards numbers formula", "json")


def compact_prompt(problem: Problem, fmt: str, rule: bool = True) -> str:
    hand, faces = " ".join(problem.cards), "J = {} Q = {} K = {} ; ".format(*problem.rule) if rule else ""
    return f"{faces}cards {hand} ; make {problem.target} ; as {fmt} :\n"


def compact_feedback(problem: Problem, verdict: Verdict, fmt: str) -> str:
    """What the checker says to a wrong try, before the next one."""
    numbers = " ".join(map(str, problem.numbers))
    fault = {"illegal": "illegal ; ", "wrong_numbers": f"numbers {numbers} ; ", "wrong_value": "value ; "}
    return f"no ; {fault.get(verdict.outcome, '')}as {fmt} :\n"


def compact_answer(problem: Problem, formula: str, fmt: str) -> str:
    """The answer in one of `FORMATS`, every token set off by spaces. As JSON it parses as JSON."""
    parts = {
        "cards": " ".join(problem.cards),
        "numbers": " ".join(map(str, problem.numbers)),
        "formula": spaced(formula),
    }
    if fmt != "json":
        return " ; ".join(parts[name] for name in fmt.split())
    return '{{"cards":" {cards} ","numbers":" {numbers} ","formula":" {formula} "}}'.format(**parts)


def spaced(formula: str) -> str:
    """A formula with its tokens set off by single spaces."""
    for mark in "+-*/()":
        formula = formula.replace(mark, f" {mark} ")
    return " ".join(formula.split())


def _wrong_try(problem: Problem, rng: np.random.Generator) -> tuple[Problem, str]:
    """The problem as a poor player reads it, and a formula that the checker does not take."""
    kind = rng.choice(["wrong_numbers", "wrong_value", "illegal"], p=[0.5, 0.4, 0.1])
    while True:
        read = problem
        if kind == "wrong_numbers":  # other values for the face cards, often one for all; or a card misread
            one = int(rng.integers(1, 14))
            rule = tuple(one if rng.random() < 0.7 else int(rng.integers(1, 14)) for _ in FACES)
            read = replace(problem, rule=rule)
            if not set(FACES) & set(problem.cards):
                changed = list(problem.cards)
                changed[rng.integers(HAND_SIZE)] = str(rng.integers(2, 11))
                read = replace(problem, cards=tuple(changed))
        formula = _any_solution(read.numbers, rng)
        if kind == "wrong_value":
            formula = _near_miss(formula, rng)
        if kind == "illegal":
            tokens = spaced(formula).split()
            del tokens[rng.integers(len(tokens))]
            formula = " ".join(tokens)
        if judge(formula, problem.numbers, problem.target).outcome == kind:
            return read, formula


def _any_solution(numbers: tuple[int, ...], rng: np.random.Generator) -> str:
    """One of the solutions; where there is none, any formula with these numbers."""
    found = solutions(tuple(sorted(numbers)))
    return found[rng.integers(len(found))] if found else _any_formula(numbers, rng)


def _near_miss(formula: str, rng: np.random.Generator) -> str:
    """The formula with another operator in one place, or with two of its numbers exchanged."""
    tokens = spaced(formula).split()
    operators = [i for i, t in enumerate(tokens) if t in "+-*/"]
    numbers = [i for i, t in enumerate(tokens) if t.isdigit()]
    if rng.random() < 0.5:
        i = operators[rng.integers(len(operators))]
        tokens[i] = "+-*/"[rng.integers(4)]
    else:
        i, j = rng.choice(numbers, 2, replace=False)
        tokens[i], tokens[j] = tokens[j], tokens[i]
    return " ".join(tokens)


def _any_formula(numbers: tuple[int, ...], rng: np.random.Generator) -> str:
    """A formula in the shape of some hand's solution, with these numbers in any order."""
    hands = _solvable_numbers()
    found = solutions(hands[rng.integers(len(hands))])
    mine = iter(rng.permutation(numbers))
    return re.sub(r"\d+", lambda _: str(next(mine)), found[rng.integers(len(found))])


@cache
def _solvable_numbers() -> tuple[tuple[int, ...], ...]:
    every = combinations_with_replacement(range(1, 14), HAND_SIZE)
    return tuple(numbers for numbers in every if solutions(numbers))


@cache
def _solvable(rule: tuple[int, int, int]) -> tuple[Problem, ...]:
    every = (Problem(cards, rule) for cards in combinations_with_replacement((*PLAIN[:10], *FACES), HAND_SIZE))
    return tuple(hand for hand in every if solutions(tuple(sorted(hand.numbers))))


@cache
def _with_faces(rule: tuple[int, int, int]) -> tuple[Problem, ...]:
    return tuple(hand for hand in _solvable(rule) if set(FACES) & set(hand.cards))


@cache
def _hands(split: str) -> tuple[Problem, ...]:
    if probe := SPLITS[split].probe:
        rule = (int(SPLITS[split].value),) * len(FACES)
    else:
        rule = tuple(RULES[split].values())
    if split == "new_numbers":
        plain = RULES["ood"]
        return tuple(Problem(tuple(str(plain.get(c, c)) for c in hand.cards), rule) for hand in _hands("ood"))
    hands = _solvable(rule) if split == "id" else _with_faces(rule)
    if probe:
        picks = np.random.default_rng(rule[0]).permutation(len(hands))[:PROBE_HANDS]
        return tuple(hands[i] for i in sorted(picks))
    return hands


TASK = GeneralPoints()
