"""The checks of the exercises on the task and SFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
from scipy import stats

from oodlib.exercises.checking import UNFILLED, Wrong, Z, approve, call, check, demand
from oodlib.run import Run
from oodlib.tasks.general_points import FACES, RULES, TASK
from oodlib.tasks.general_points.checker import judge


@check
def one_way(cards: Sequence[str]) -> None:
    """Four cards that can make 24 under the ID rule and cannot under the OOD rule."""
    demand(cards is not ..., UNFILLED)
    try:
        hands = {name: TASK.problem(cards, rule).numbers for name, rule in RULES.items()}
    except (ValueError, TypeError) as error:
        raise Wrong(f"{error}.") from None
    demand(hands["id"] != hands["ood"], "Both rules read this hand alike, so what one can make the other can.")
    numbers = {name: " ".join(map(str, mine)) for name, mine in hands.items()}
    demand(TASK.solutions(hands["id"]), f"Under the ID rule this is {numbers['id']}, which cannot make 24.")
    found = TASK.solutions(hands["ood"])
    demand(not found, f"Under the OOD rule this is {numbers['ood']}, which makes 24 in {len(found)} way(s).")
    same = {p.cards for p in TASK.split("ood")}
    others = sum(p.cards not in same and bool({*p.cards} & {*FACES}) for p in TASK.split("id"))
    approve(f"SFT sees {others} hands of this kind; the OOD split leaves them out, for it deals solvable hands only.")


@check
def reward(function: Callable[[str, tuple[int, ...], Fraction | None], float]) -> None:
    """reward(formula, numbers, value) as the checker pays it, for formulas that keep to the grammar."""
    rng = np.random.default_rng(0)
    rules = {
        "correct": "a right answer",
        "illegal": "characters that no formula has",
        "wrong_numbers": "which numbers are used",
        "wrong_value": "another value than 24",
    }
    for _ in range(300):
        numbers = tuple(map(int, rng.integers(1, 14, 4)))
        formula, value = _formula(numbers, rng)
        verdict = judge(formula, numbers, 24)
        paid = float(call(function, formula, numbers, value))
        demand(
            paid == verdict.reward,
            f"For {formula!r}, worth {value}, on the hand {numbers} you pay {paid:g}. Look at the rule on "
            f"{rules[verdict.outcome]} again.",
        )
    approve("wrong numbers cost 2 or 4, a wrong value 1: the reward minds a misread rule more than a miscalculation.")


def _formula(numbers: tuple[int, ...], rng: np.random.Generator) -> tuple[str, Fraction | None]:
    """A formula that keeps to the grammar, mostly of these numbers, and its value (None: there is none)."""
    used = list(numbers)
    kind = rng.integers(5)
    some = int(rng.integers(1, 4))
    if kind == 1:
        used[:some] = map(int, rng.integers(1, 14, some))
    if kind in (2, 3):
        used = used[some:] if kind == 2 else [*used, *used[:some]]
    if kind < 3 and rng.random() < 0.5 and (solved := TASK.solutions(used)):
        return str(rng.choice(solved)), Fraction(24)  # perhaps of another hand
    terms: list[tuple[str, Fraction | None]] = [(str(n), Fraction(n)) for n in used]
    while len(terms) > 1:
        (a, x), (b, y) = (terms.pop(int(rng.integers(len(terms)))) for _ in range(2))
        mark = "+-*/"[rng.integers(4)]
        if x is None or y is None or (mark == "/" and not y):
            value = None
        else:
            value = {"+": x + y, "-": x - y, "*": x * y}[mark] if mark != "/" else x / y
        terms.append((f"({a}{mark}{b})", value))
    ((text, value),) = terms
    return (text.replace("*", rng.choice(["x", "^", "a", "="])), None) if kind == 4 and "*" in text else (text, value)


@check
def paired_interval(function: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> None:
    """interval(a, b): 95 % of mean(a) - mean(b), of arrays that hold 1 or 0 for the same problems."""
    rng, ratios = np.random.default_rng(1), []
    for rate in (0.2, 0.4, 0.6, 0.5, 0.3):
        ease = rng.normal(size=500)
        a, b = ((ease + rng.normal(size=500) * 0.6 > stats.norm.ppf(1 - p)).astype(float) for p in (rate, rate - 0.05))
        low, high = map(float, call(function, a, b))
        mean, half = (a - b).mean(), Z * stats.sem(a - b)
        demand(low < high, f"The interval [{low:.3f}, {high:.3f}] has its ends in the wrong order.")
        off = abs((low + high) / 2 - mean) / half
        demand(off < 0.3, f"The interval's middle should be near mean(a) - mean(b) = {mean:+.3f}; it is not.")
        ratios.append((high - low) / (2 * half))
    ratio = np.mean(ratios)
    demand(ratio < 1.06, f"The interval is {ratio:.1f} times too wide: a hard hand is hard for both checkpoints.")
    demand(ratio > 0.94, f"The interval is too narrow, {ratio:.2f} of what 95 % needs.")
    approve("hands differ far more than checkpoints do, and what both find hard cancels in the difference.")


@check
def could_be_peak(steps: Sequence[int], run: Run) -> None:
    """The SFT steps whose OOD accuracy cannot be told from the highest one: the paired interval holds 0."""
    demand(steps is not ..., UNFILLED)
    right = _right_hands(run)
    best = right.mean().idxmax()
    gap = right[[best]].to_numpy() - right
    low = gap.mean() - Z * gap.sem()
    sure, out = ({int(t) for t in low.index[mine]} for mine in (low < -0.003, low > 0.003))
    answer = {int(t) for t in steps}
    strange = answer - {int(t) for t in right}
    demand(not strange, f"SFT has no checkpoint at {sorted(strange)}.")
    demand(best in answer, "The step with the highest accuracy is missing: it surely could be the peak.")
    far = answer & out
    demand(not far, f"{len(far)} of your steps lie below the best one with the whole paired interval.")
    lacking = (sure | {int(best)}) - answer
    demand(not lacking, f"{len(lacking)} more cannot be told from the best: its paired interval holds 0.")
    rows = ", ".join(f"{t} ({-100 * gap[t].mean():+.1f} points)" for t in sorted(answer - {int(best)}))
    approve(f"step {best} is the highest; not to be told from it: {rows or 'no other'}.")


def _right_hands(run: Run) -> pd.DataFrame:
    """A row an OOD hand, a column an SFT step: was the answer right. The first seed."""
    hands = run.table("hands", "sft")
    mine = hands[(hands["split"] == "ood") & (hands["stage"] == "sft") & (hands["seed"] == run.config.seed)]
    mine = mine.assign(right=(mine["outcome"] == "correct").astype(float))
    return mine.astype({"problem": str}).pivot(index="problem", columns="step", values="right")
