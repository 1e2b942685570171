"""The checker of GeneralPoints: finds the formula in an answer and judges it, without ever running it.

Time is linear in the length of the text, whatever the text; memory is too. Rewards follow the paper's
protocol: 5 for a correct formula; otherwise -3 for each grammar fault (a token that cannot follow the one
before it, a bracket without a partner), or -3 alone for characters that no formula has; -2 for numbers
not in the hand or used too often, -2 for numbers left out; -1 for a wrong value and no other fault.

A formula has the characters that the prompt asks for: ASCII digits, + - * / and round brackets, with blanks between.
Other minus and times signs, full-width digits, powers, decimals and separators are characters that no formula has.
"""

from __future__ import annotations

import re
from collections import Counter
from math import gcd

from oodlib.tasks.base import Verdict

_FIELD = re.compile(r"""["']formula["']\s*:\s*["']""")
_NUMBERS = re.compile(r"""["']numbers["']\s*:\s*["'\[]([^"'\]]*)["'\]]""")
_TOKEN = re.compile(r"[0-9]+|[-+*/()]")
_FOREIGN = re.compile(r"[^0-9+\-*/() \t\r\n]")
_NUMBER = re.compile(r"[0-9]+")
_BLANK = re.compile(r"[ \t\r\n]+")
# Over the shape of a formula (n for a number, the rest as it is, between ^ and $): pairs that cannot be.
_FAULT = re.compile(r"(?=[\^+\-*/(][+\-*/)$]|[n)][n(])")


def find_formula(text: str) -> str | None:
    """The text of the last `"formula": "…"` field, or None where there is none that is closed."""
    start = None
    for match in _FIELD.finditer(text):
        start = match.end()
    if start is None:
        return None
    end = text.find(text[start - 1], start)
    return None if end < 0 else text[start:end]


def find_numbers(text: str) -> list[int] | None:
    """The whole numbers of the last "numbers" field, ascending; None where there is no field, or it is not closed."""
    found = None
    for match in _NUMBERS.finditer(text):
        found = match[1]
    if found is None:
        return None
    return sorted(int(number) for number in _NUMBER.findall(found) if len(number) < 4)


def judge(formula: str, numbers: tuple[int, ...], target: int) -> Verdict:
    """The verdict on a bare formula that should use each of `numbers` once and equal `target`."""
    body, equals, claimed = formula.rpartition("=")
    if equals and claimed.strip(" \t\r\n") == str(target):
        formula = body
    foreign = _FOREIGN.search(formula)
    if foreign:
        message = f"A formula has only digits, + - * / and brackets, not {foreign.group()!r}."
        return Verdict("illegal", -3.0, message)
    tokens = _TOKEN.findall(formula)
    faults = _grammar_faults(formula)
    used = [int(t) if len(t) < 4 and t[0] != "0" else None for t in tokens if t[0] not in "+-*/()"]
    spare, missing = _compare(used, numbers)
    if faults:
        reward = -3.0 * faults - 2.0 * bool(spare) - 2.0 * bool(missing)
        return Verdict("illegal", reward, f"The formula breaks the grammar in {faults} place(s).")
    if spare or missing:
        hand = ", ".join(map(str, sorted(numbers)))
        fault = " and ".join(
            ["uses numbers that are not there or too often"] * spare + ["leaves numbers out"] * missing
        )
        message = f"The numbers are {hand}, each to be used once; the formula {fault}."
        return Verdict("wrong_numbers", -2.0 * spare - 2.0 * missing, message)
    value = _value(tokens)
    if value is None:
        return Verdict("wrong_value", -1.0, "The formula divides by zero.")
    if value == (target, 1):
        return Verdict("correct", 5.0, f"Correct: the formula makes {target}.")
    p, q = value
    return Verdict("wrong_value", -1.0, f"The formula makes {p if q == 1 else f'{p}/{q}'}, not {target}.")


def _grammar_faults(formula: str) -> int:
    shape = _NUMBER.sub("n", formula) if not _BLANK.search(formula) else None
    if shape is None:  # a blank parts two numbers, so it goes only after they are marked
        shape = _BLANK.sub("", _NUMBER.sub("n", formula))
    faults = sum(1 for _ in _FAULT.finditer(f"^{shape}$"))
    depth = 0
    if "(" in shape or ")" in shape:
        for mark in shape:
            if mark == "(":
                depth += 1
            elif mark == ")":
                if depth:
                    depth -= 1
                else:
                    faults += 1
    return faults + depth


def _compare(used: list[int | None], numbers: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether numbers are used that the hand lacks, and whether some of the hand's are left out."""
    if None not in used and sorted(used) == sorted(numbers):
        return False, False
    count, hand = Counter(used), Counter(numbers)
    return bool(count - hand), bool(hand - count)


def _value(tokens: list[str]) -> tuple[int, int] | None:
    """The exact value of a grammatical formula as a ratio in lowest terms; None if it divides by zero."""
    values: list[tuple[int, int]] = []
    marks: list[str] = []
    try:
        for token in tokens:
            if token == "(":
                marks.append(token)
            elif token == ")":
                while marks[-1] != "(":
                    _apply(values, marks.pop())
                marks.pop()
            elif token in "+-*/":
                while marks and (marks[-1] in "*/" or (token in "+-" and marks[-1] in "+-")):
                    _apply(values, marks.pop())
                marks.append(token)
            else:
                values.append((int(token), 1))
        while marks:
            _apply(values, marks.pop())
    except ZeroDivisionError:
        return None
    p, q = values[0]
    divisor = gcd(p, q)
    return p // divisor, q // divisor


def _apply(values: list[tuple[int, int]], mark: str) -> None:
    """Replace the last two ratios by their result, its denominator above 0, not always in lowest terms."""
    r, s = values.pop()
    p, q = values.pop()
    if mark == "+":
        p, q = p * s + r * q, q * s
    elif mark == "-":
        p, q = p * s - r * q, q * s
    elif mark == "*":
        p, q = p * r, q * s
    else:
        if not r:
            raise ZeroDivisionError
        p, q = p * s, q * r
    if q == 1:
        values.append((p, q))
        return
    if q < 0:
        p, q = -p, -q
    if p % q == 0:
        p, q = p // q, 1
    values.append((p, q))
