"""A user's own data: one JSON object a line, and a checker that says which answers are right.

A line has `prompt` (text, or chat messages {role, content}), `completion` (a right answer to learn from), `answer`
(any JSON value, for the checker) and, if wanted, `label`. Options: the files `id` and `ood`; `train`, from which ID
problems are dealt for training (else from `id`); `checker`: `exact` (the default), `number`, or a function's import
path; any other option is a further split: its name, and its file. Nothing that a file says is ever run.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from oodlib.io import as_text, one_line, read_bytes, shown
from oodlib.registry import import_object, is_path
from oodlib.tasks.base import OUTCOMES, STYLES, Split, Splits, Verdict, check_choice

REQUIRED = ("id", "ood")
NOT_SPLITS = ("train", "checker")
COLOURS = ("#E69F00", "#CC79A7", "#56B4E9", "#009E73", "#B8A800")  # of further splits
_NAME = re.compile(r"[A-Za-z][\w-]*")
Check = Callable[[Any, str], bool | float | Verdict]  # (the line's `answer`, the model's text) -> how right it is
_ALIKE = {  # characters that are read as an ASCII one: other minus signs and slashes, full-width and Arabic marks
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\u02d7\u207b\u208b\u2796", "-"),
    **dict.fromkeys("\uff0c\u066c", ","),
    **dict.fromkeys("\uff0e\u066b", "."),
    **dict.fromkeys("\uff0f\u2044\u2215", "/"),
    **dict.fromkeys("\uff45\uff25", "e"),
    "\uff0b": "+",
}
_UNSEEN = "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"  # joiners, directions, variants
_TO_ASCII, _INVISIBLE = str.maketrans(_ALIKE), re.compile(f"[{_UNSEEN}]")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_GROUPS = r"[0-9]{1,3}(?:(?P<NAME>[,'\u2019_\u00a0\u2007\u2009\u202f])[0-9]{3}(?:(?P=NAME)[0-9]{3})*)(?![0-9])"
_PLAIN = r"(?:(?:GROUPS|[0-9]+)(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)(?:[eE][+-]?[0-9]+)?".replace("GROUPS", _GROUPS)
_FIRST, _NEXT = (_PLAIN.replace("NAME", name) for name in ("a", "b"))
_CLOSING = re.escape("".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c) == "Pe"))
_MINUS = rf"(?<![^\W_])(?<![.{_CLOSING}])-"  # after a letter, a digit, a point or a closing bracket it is a dash
_NUMBER = re.compile(rf"(?P<first>(?:{_MINUS})?{_FIRST})(?P<next>(?:/[+-]?{_NEXT})*)")
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
Text = Annotated[str, StringConstraints(pattern=r"\S")]


class Message(BaseModel, extra="forbid", strict=True):
    role: str
    content: str


class Line(BaseModel, strict=True):
    """A line of a file, as it must be."""

    prompt: Text | Annotated[list[Message], Field(min_length=1)]
    completion: Text
    answer: Any
    label: Text | None = None


@dataclass(frozen=True)
class Problem:
    """One line of a file.

    Attributes:
        prompt: text, or chat messages as pairs (role, content).
        gold: the line's `answer`, as JSON text.
    """

    prompt: str | tuple[tuple[str, str], ...]
    completion: str
    gold: str
    label: str


class JsonLines:
    name = "jsonl"

    def __init__(self, options: Mapping[str, str]):
        for option in options:
            if not _NAME.fullmatch(option):
                raise ValueError(f"task.options: {option!r} cannot be a split's name: letters, digits, - and _")
        if missing := [split for split in REQUIRED if split not in options]:
            raise ValueError(f"task.options of jsonl lack {' and '.join(missing)}: the path of a JSONL file")
        self.check, self._parameters = _checker(options.get("checker", "exact"))
        self._problems: dict[str, tuple[Problem, ...]] = {}
        for name in options:
            if name != "checker":
                self._problems[name], self._parameters[name] = _read(Path(options[name]), self.check is number)

        further = [name for name in options if name not in (*REQUIRED, *NOT_SPLITS)]
        others = (
            Split(n, n.replace("_", " "), (n,), COLOURS[i % len(COLOURS)], f"the file {Path(options[n]).name}")
            for i, n in enumerate(further)
        )
        trained = Split("id", "ID", (), "#0072B2", "like the training data")
        headline = Split("ood", "OOD", ("distribution",), "#D55E00", "never trained on")
        self.splits = Splits(trained, headline, tuple(others))

    def parameters(self) -> dict[str, str]:
        """The options as a run's key has them: SHA-256 digests of the files in place of their paths."""
        return dict(self._parameters)

    def split(self, name: str) -> list[Problem]:
        """Every line of the file of a split."""
        return list(self._problems[self.splits[name].name])

    def sample(self, rng: np.random.Generator, split: str, n: int) -> list[Problem]:
        """`n` lines, evenly, with repetition; those of `train` for the split `id` where there is such a file."""
        name = self.splits[split].name
        dealt = self._problems.get("train", self._problems["id"]) if name == "id" else self._problems[name]
        return [dealt[i] for i in rng.integers(len(dealt), size=n)]

    def prompt(self, problem: Problem, style: str) -> str | list[dict[str, str]]:
        check_choice("prompt style", style, STYLES)
        if isinstance(problem.prompt, str):
            return problem.prompt if style == "compact" else [{"role": "user", "content": problem.prompt}]
        if style == "compact":
            raise ValueError(f"the prompt of {problem.label!r} is chat messages: use task.prompt_style chat")
        return [{"role": role, "content": content} for role, content in problem.prompt]

    def answer(self, problem: Problem, style: str, rng: np.random.Generator) -> str | list[dict[str, str]]:
        """The line's `completion`."""
        check_choice("prompt style", style, STYLES)
        return problem.completion if style == "compact" else [{"role": "assistant", "content": problem.completion}]

    def verify(self, problem: Problem, text: str) -> Verdict:
        """The checker's verdict. Reward 5 for a right answer, -1 + 6 * score for others, -3 if it cannot be read."""
        if not text.strip():
            return Verdict("malformed", -3.0, "No answer was found.")
        try:
            found = self.check(_gold(problem, self.check is number), text)
        except ValueError as error:
            return Verdict("malformed", -3.0, str(error) or "The answer cannot be read.")
        except (Exception, SystemExit) as error:  # whatever a checker of one's own raises
            where = f"the checker {self._parameters['checker']!r} fails on {shown(problem.label)}"
            raise RuntimeError(f"{where}: {type(error).__name__}: {one_line(error)}") from error
        if isinstance(found, Verdict) and _is_sound(found):
            return found
        if not _is_number(found) or not 0 <= found <= 1:
            kinds = (
                "a bool, a number from 0 to 1, or a Verdict with a finite reward, a text as message, and one of the "
                f"outcomes {', '.join(OUTCOMES)}"
            )
            raise ValueError(f"the checker gave {shown(found)} for {shown(problem.label)}, which is not {kinds}")
        right = found == 1
        message = "This is right." if right else "This is not the right answer."
        return Verdict("correct" if right else "wrong_value", -1.0 + 6.0 * float(found), message)

    def feedback(self, problem: Problem, verdict: Verdict, style: str) -> str | list[dict[str, str]]:
        """What is said to the player after a wrong try: the checker's message, and the wish for another answer."""
        check_choice("prompt style", style, STYLES)
        text = f"{verdict.message} Try again, in the same format."
        return f"\n{text}\n" if style == "compact" else [{"role": "user", "content": text}]

    def label(self, problem: Problem) -> str:
        return problem.label


def _is_sound(verdict: Verdict) -> bool:
    said = verdict.outcome in OUTCOMES and isinstance(verdict.message, str)
    return said and _is_number(verdict.reward) and bool(np.isfinite(verdict.reward))


def _is_number(value: Any) -> bool:
    numbers = (bool, int, float, np.bool_, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, np.timedelta64)  # which numpy calls an integer


def exact(answer: Any, text: str) -> bool:
    """Whether the text is the answer, white space around it aside."""
    return text.strip() == (answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)).strip()


def number(answer: Any, text: str) -> bool:
    """Whether the last number in the text is the answer (its last number, if it is text), exactly, without tolerance.

    A number has digits of any script (full-width, Arabic, …), a point as decimal sign, and perhaps an exponent (2e3). A
    minus sign stands right before it; a hyphen, a figure or en dash and Unicode's minus signs are the same, and after a
    letter, a digit, a point or a closing bracket they are a dash (10-24 ends in 24). Groups of three digits may be set
    off by one sign throughout: comma, apostrophe, underscore, or a no-break, figure or thin space. Two numbers with a
    slash, any of Unicode's, are a fraction (-3/4, 3/-4). Characters that are not seen count for nothing. Nothing else
    is read: a plain space or another comma parts two numbers (3,14 ends in 14), 50% is 50, an em dash is no minus sign,
    and superscripts, ½, roots and words are no numbers. ValueError if there is no number, or its exponent is beyond
    9999.
    """
    (p, q), (r, s) = _last_number(str(answer)), _last_number(text)
    return _EXACT.multiply(p, s) == _EXACT.multiply(r, q)


def _last_number(text: str) -> tuple[Decimal, Decimal]:
    """The last number in a text as a ratio."""
    if not text.isascii():
        text = _INVISIBLE.sub("", text).translate(_TO_ASCII)
        text = _OTHER_DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    last = deque(_NUMBER.finditer(text), maxlen=1)
    if not last:
        raise ValueError("No number was found.")
    match = last[0]
    further = match["next"].split("/")[1:]
    if len(further) > 1:  # 3/4/2024 is no fraction
        return _decimal(further[-1]), Decimal(1)
    p, q = _decimal(match["first"]), _decimal(further[0]) if further else Decimal(1)
    if not q:
        raise ValueError("The number's denominator is zero.")
    return p, q


def _decimal(text: str) -> Decimal:
    mantissa, _, exponent = re.sub(r"[^0-9.eE+-]", "", text).lower().partition("e")
    if len(exponent.lstrip("+-0")) > 4:
        raise ValueError("The number's exponent is too large.")
    return Decimal(f"{mantissa}e{exponent or 0}")


CHECKERS: dict[str, Check] = {"exact": exact, "number": number}
METHODS = {"number": {"checker_method": "4"}}  # raised by hand where it judges otherwise than before


def _checker(name: str) -> tuple[Check, dict[str, str]]:
    """A checker by its plain name or its import path, and what says in a run's key which one it is."""
    if name in CHECKERS:
        return CHECKERS[name], {"checker": name, **METHODS.get(name, {})}
    if not is_path(name):
        raise ValueError(
            f"unknown checker {name!r}: allowed are {', '.join(CHECKERS)}, or my_package.my_module:function"
        )
    check = import_object(name, "checker")
    if not callable(check):
        raise ValueError(f"the checker {name!r} is no function")
    source = import_module(name.partition(":")[0]).__file__
    return check, {"checker": name, "checker_code": _digest(Path(source).read_bytes()) if source else ""}


def _read(path: Path, numbers: bool) -> tuple[tuple[Problem, ...], str]:
    """The problems of a file and its digest; `numbers`: every answer must hold a number."""
    content = read_bytes(path)
    lines = as_text(content, path).split("\n")
    problems: dict[str, tuple[int, Problem]] = {}
    for n, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            problem = _problem(line, n)
            (_refuse_no_number if numbers else _refuse_no_json)(_gold(problem, numbers))
            if problem.label in problems:
                raise ValueError(f"the label {problem.label!r} is that of line {problems[problem.label][0]} too")
        except ValueError as error:
            raise ValueError(f"{path}, line {n}: {error}") from None
        problems[problem.label] = n, problem
    if not problems:
        raise ValueError(f"{path} is empty: it must hold one JSON object a line")
    return tuple(problem for _, problem in problems.values()), _digest(content)


def _problem(line: str, n: int) -> Problem:
    try:
        row = Line.model_validate_json(line)
        json.loads(line, object_pairs_hook=_once)
        exactly = json.loads(line, parse_float=Decimal).get("answer")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "the line"
        if name == "prompt" and first["type"] != "missing":
            raise ValueError("prompt must be text, or a list of chat messages with text as role and content") from None
        got = "" if first["type"] in ("missing", "json_invalid") else f", not {shown(first['input'])}"
        raise ValueError(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}{got}") from None
    prompt = row.prompt if isinstance(row.prompt, str) else tuple((m.role, m.content) for m in row.prompt)
    gold = str(exactly) if isinstance(exactly, Decimal) else json.dumps(row.answer)
    return Problem(prompt, row.completion, gold, row.label or f"line {n}")


def _gold(problem: Problem, exactly: bool) -> Any:
    """A problem's answer; a number with a point `exactly` as it was written, or as the nearest float."""
    return json.loads(problem.gold, parse_float=Decimal if exactly else float)


def _refuse_no_number(answer: Any) -> None:
    """ValueError for an answer that `number` cannot compare with."""
    if isinstance(answer, list | dict):
        raise ValueError(f"answer: a number, or text that ends in one, not {shown(answer)}")
    _last_number(str(answer))


def _refuse_no_json(answer: Any) -> None:
    """ValueError for an answer with a number that JSON cannot have."""
    try:
        json.dumps(answer, allow_nan=False)
    except ValueError:
        raise ValueError(f"answer: {shown(answer)} holds no number, or one that is too large") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    """ValueError for an object with a name twice, of which one would be lost."""
    name, times = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if times > 1:
        raise ValueError(f"{name!r} is given twice")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


TASK = JsonLines
