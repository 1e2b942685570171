"""The row `answers`: hostile texts to the two checkers, judged again by evaluators that share no code with them."""

import ast
import random
import re
import time
from collections import Counter
from fractions import Fraction
from unicodedata import category, decimal

from oodlib.tasks import OUTCOMES, get_task
from oodlib.tasks.jsonl import number

GAME = get_task("general_points")
HANDS = [
    GAME.problem(cards.split(), {"J": 11, "Q": 12, "K": 13}) for cards in ("3 3 8 8", "2 7 10 Q", "A 2 3 4", "J K A 2")
]
MARKS = [
    *"+-*/()= .,'\"\\_^%#e", "**", "//", "−", "－", "–", "×", "÷", "½", "²", "\u202f", "\u00a0", "\u200b", "\0", "\n",
    "٣", "８", "１", "，", "．", "／", "๔", "𝟗", "\ud800", "\U0010ffff", "0", "1", "8", "24", "000", "1,234", "9" * 50,
    "inf", "nan", "__import__('os')", "lambda:8", "8 if 1 else 3", '"formula":"', '"formula": "8/(3-8/3)"', "'}",
    "{", "[" * 30, "(" * 40, "e99", "e-999", "0x8", "8_0", "1e309", "True", "8j", "#", "`", "<|end|>", "= 24", "=24",
    "e1000", "e12345", "⁄", "∕", "ｅ", "＋", "]", "}", "）", "」", "⟩", "➖", "⁻", "\ufe0e", "\u2060", "/-", "/+",
]  # fmt: skip
SIGNS, GROUPS = "-−‐‑‒–﹣－˗⁻₋➖", ",'’_\u00a0\u2007\u2009\u202f"


def answers(seed: int, number: int, size: int) -> tuple[str, str | None]:
    """`size` texts, half of them for each checker."""
    rng = random.Random(f"{seed} {number}")
    slowest = 0.0
    for i in range(size):
        judge = formula if i % 2 else last_number
        text, call, right = judge(rng)
        try:
            spent, correct = timed(call)
        except Exception as error:
            return f"text {i}", f"{text!r}: {type(error).__name__}: {error}"
        allowed = max(1.0, len(text.encode(errors="surrogatepass")) / 1000) / 1000
        if spent > allowed:  # another process may have had the core: the best of ten counts
            spent = min([spent, *(timed(call)[0] for _ in range(9))])
        slowest = max(slowest, spent / allowed)
        if spent > allowed:
            return f"text {i}", f"{text[:100]!r} … {len(text)} characters take {1000 * spent:.1f} ms"
        if correct and not right():
            return f"text {i}", f"{text!r} is not correct"
    return f"slowest: {slowest:.2f} of its time", None


def timed(call):
    start = time.process_time()
    found = call()
    return time.process_time() - start, found


def mutated(rng, text):
    """The text with some pieces put in, taken out, doubled or exchanged."""
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        way = rng.randrange(5)
        if way < 3:
            text = text[:at] + rng.choice(MARKS) + text[at + (way == 2) :]
        else:
            text = text[:at] + (text[to:] if way == 3 else 2 * text[at:to] + text[to:])
    return text * rng.choice((1, 300)) if rng.random() < 0.002 else text


# ---- GeneralPoints -----------------------------------------------------------------------------------


def formula(rng):
    hand = rng.choice(HANDS)
    made = rng.choice(SOLUTIONS[hand])
    if rng.random() < 0.3:
        made = "".join(rng.choice(MARKS) for _ in range(rng.randrange(9)))
    text = mutated(
        rng,
        rng.choice(('{"formula": "%s"}', "so 'formula':'%s = 24'", '{"cards": 1, "formula": "%s"} ok'))
        % mutated(rng, made),
    )
    return text, lambda: judged(GAME.verify(hand, text)), lambda: makes(hand, text)


SOLUTIONS = {hand: GAME.solutions(hand.numbers) for hand in HANDS}


def judged(verdict):
    assert verdict.outcome in OUTCOMES and len(verdict.message) < 300
    assert verdict.reward == 5 if verdict.outcome == "correct" else verdict.reward < 0
    return verdict.outcome == "correct"


def makes(hand, text):
    """Whether the text's last formula is, to Python's parser, a sum over the hand's numbers that makes the target."""
    begins = list(
        re.finditer(r"(['\"])formula\1\s*:\s*(['\"])|\"formula'\s*:\s*(['\"])|'formula\"\s*:\s*(['\"])", text)
    )
    quote = text[begins[-1].end() - 1]
    body = text[begins[-1].end() :].split(quote)[0]
    if "=" in body:
        body, _, end = body.rpartition("=")
        if end.split() != [str(hand.target)]:
            return False
    body = "".join(c if c not in "\t\r\n" else " " for c in body)
    while body.strip().startswith("((") and body.count("(") > 60:  # deeper than Python's parser goes
        body = body.strip()[1:-1]
    left = Counter(hand.numbers)

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            left[node.value] -= 1
            return Fraction(node.value)
        a, b = value(node.left), value(node.right)
        kind = type(node.op)
        return a + b if kind is ast.Add else a - b if kind is ast.Sub else a * b if kind is ast.Mult else a / b

    try:
        tree = ast.parse(body.strip(), mode="eval").body
        allowed = (ast.BinOp, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div)
        if not all(isinstance(node, allowed) for node in ast.walk(tree)):
            return False
        return value(tree) == hand.target and not any(left.values())
    except (SyntaxError, ValueError, ZeroDivisionError, AttributeError):
        return False


# ---- number ------------------------------------------------------------------------------------------


def last_number(rng):
    n = rng.choice((rng.randrange(100), rng.randrange(10**7), rng.randrange(10**9)))
    answer = rng.choice((n, -n, n / 8, f"{n}/{rng.randrange(1, 9)}"))
    text = mutated(
        rng, rng.choice(("%s", "it is %s.", "1,2,3 so x = %s", "from 10-%s", "%s %% of 7")) % written(rng, str(answer))
    )
    return text, lambda: says(answer, text), lambda: valued(str(answer)) == valued(text)


def says(answer, text):
    try:
        return number(answer, text)
    except ValueError:
        return False


def written(rng, text):
    """A number written otherwise: groups of thousands, another minus sign, digits of another script."""
    whole, point, rest = text.partition(".")
    if rng.random() < 0.4 and whole.lstrip("-").isdigit():
        whole = f"{int(whole):,}".replace(",", rng.choice(GROUPS))
    text = whole.replace("-", rng.choice(SIGNS)) + point + rest
    if rng.random() < 0.2:
        zero = rng.choice("０٠๐𝟎")
        text = "".join(chr(ord(zero) + int(c)) if c in "0123456789" else c for c in text)
    return text


def valued(text):
    """The last number of a text as a Fraction, scanned character by character; None where there is none."""
    text, at, last = "".join(plain(c) for c in text if not unseen(c)), 0, None
    while at < len(text):
        before = text[at - 1] if at else " "
        minus = text[at] == "-" and not (before.isalnum() or before == "." or category(before) == "Pe")
        value, end = unsigned(text, at + minus)
        if value is None:
            at += 1
            continue
        parts = [-value if minus else value]
        while text[end : end + 1] == "/":
            sign = text[end + 1 : end + 2]
            value, to = unsigned(text, end + 1 + (sign in ("+", "-")))
            if value is None:
                break
            parts.append(-value if sign == "-" else value)
            end = to
        zero = len(parts) == 2 and not parts[1]
        last, at = None if zero else parts[0] / parts[1] if len(parts) == 2 else parts[-1], end
    return last


def unsigned(text, at):
    """The number that begins here, and where it ends; None where none does."""
    whole, end = digits(text, at)
    if not whole and (text[at : at + 1] != "." or (at and text[at - 1] in "0123456789.")):
        return None, at
    if 0 < len(whole) < 4 and text[end : end + 1] and text[end] in GROUPS:
        mark, groups, to = text[end], [], end
        while text[to : to + 1] == mark and len(digits(text[: to + 4], to + 1)[0]) == 3:
            groups, to = [*groups, text[to + 1 : to + 4]], to + 4
        if groups and digits(text, to)[0]:
            groups, to = groups[:-1], to - 4
        whole, end = whole + "".join(groups), to
    rest = ""
    if text[end : end + 1] == ".":
        rest, to = digits(text, end + 1)
        if not rest and not whole:
            return None, at
        end = to if rest else end
    power = re.compile(r"[eE]([+-]?)0*([0-9]+)").match(text, end)
    end, rest = power.end() if power else end, rest.rstrip("0")
    value = Fraction(int((whole + rest).lstrip("0") or "0"), 10 ** len(rest))
    if power and len(power[2]) > 4:
        return Fraction(-1, 7), end  # no answer: such a number cannot be read
    return value * Fraction(10) ** int(power[1] + power[2]) if power else value, end


def digits(text, at):
    end = at
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return text[at:end], end


def unseen(c):
    return (category(c) == "Cf" and "\u200b" <= c <= "\u206f") or c in "\u00ad\ufeff" or "\ufe00" <= c <= "\ufe0f"


def plain(c):
    if c in SIGNS:
        return "-"
    if c in "，٬":
        return ","
    if c in "．٫":
        return "."
    if c in "ｅＥ":
        return "e"
    return "+" if c == "＋" else "/" if c in "／⁄∕" else str(decimal(c)) if decimal(c, None) is not None else c
