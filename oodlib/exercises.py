"""The checks of the exercises in notebooks/exercises: a check takes an answer, says "Right" and why, or raises `Wrong`.

A check computes what is asked in another way, or asks for what every right answer has, so that it takes any right one.
What it says of a wrong one names the fault and not the answer. Numbers are read from a run's tables, never from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from oodlib import healing
from oodlib.campaign import Campaign
from oodlib.claims import PAPER, VERDICTS
from oodlib.runs import Run
from oodlib.spectra import compare, spectrum
from oodlib.surgery import restore
from oodlib.tasks.checker import judge
from oodlib.tasks.general_points import FACES, RULES, TASK

if TYPE_CHECKING:
    from oodlib.bench import Operation  # with transformers, which takes seconds

Z = stats.norm.ppf(0.975)
UNFILLED = "Fill in the cell above first."


class Wrong(AssertionError):
    """An answer that is not right. The message says what it lacks; a notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def _demand(holds: Any, message: str) -> None:
    if not holds:
        raise Wrong(message)


def _right(insight: str) -> None:
    print(f"Right: {insight}")


def _number(answer: Any) -> float:
    _demand(answer is not ..., UNFILLED)
    _demand(isinstance(answer, (int, float, np.number)), f"One number is asked for, not {answer!r}.")
    return float(answer)


def _call(function: Any, *arguments: Any) -> Any:
    """What a reader's function returns; `Wrong` where it is not written yet."""
    _demand(callable(function), "A function is asked for; give its name, without brackets.")
    try:
        found = function(*arguments)
    except NotImplementedError:
        raise Wrong(UNFILLED) from None
    _demand(found is not None and found is not ..., "The function returns nothing.")
    return found


# ---- 01: the task and SFT ------------------------------------------------------------------------------


def one_way(cards: Sequence[str]) -> None:
    """Four cards that can make 24 under the ID rule and cannot under the OOD rule."""
    _demand(cards is not ..., UNFILLED)
    try:
        hands = {name: TASK.problem(cards, rule).numbers for name, rule in RULES.items()}
    except (ValueError, TypeError) as error:
        raise Wrong(f"{error}.") from None
    _demand(hands["id"] != hands["ood"], "Both rules read this hand alike, so what one can make the other can.")
    numbers = {name: " ".join(map(str, mine)) for name, mine in hands.items()}
    _demand(TASK.solutions(hands["id"]), f"Under the ID rule this is {numbers['id']}, which cannot make 24.")
    found = TASK.solutions(hands["ood"])
    _demand(not found, f"Under the OOD rule this is {numbers['ood']}, which makes 24 in {len(found)} way(s).")
    same = {p.cards for p in TASK.split("ood")}
    others = sum(p.cards not in same and bool({*p.cards} & {*FACES}) for p in TASK.split("id"))
    _right(f"SFT sees {others} hands of this kind; the OOD split leaves them out, for it deals solvable hands only.")


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
        paid = float(_call(function, formula, numbers, value))
        _demand(
            paid == verdict.reward,
            f"For {formula!r}, worth {value}, on the hand {numbers} you pay {paid:g}. Look at the rule on "
            f"{rules[verdict.outcome]} again.",
        )
    _right("wrong numbers cost 2 or 4, a wrong value 1: the reward minds a misread rule more than a miscalculation.")


def _formula(numbers: tuple[int, ...], rng: np.random.Generator) -> tuple[str, Fraction | None]:
    """A formula that keeps to the grammar, mostly of these numbers, and its value (None: there is none)."""
    used = list(numbers)
    kind = rng.integers(5)
    if kind == 1:
        used[0] = int(rng.integers(1, 14))
    if kind in (2, 3):
        used = used[1:] if kind == 2 else [*used, used[0]]
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
    return (text.replace("*", "x"), None) if kind == 4 and "*" in text else (text, value)


def paired_interval(function: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> None:
    """interval(a, b): 95 % of mean(a) - mean(b), of arrays that hold 1 or 0 for the same problems."""
    rng, ratios = np.random.default_rng(1), []
    for rate in (0.2, 0.4, 0.6, 0.5, 0.3):
        ease = rng.normal(size=500)
        a, b = ((ease + rng.normal(size=500) * 0.6 > stats.norm.ppf(1 - p)).astype(float) for p in (rate, rate - 0.05))
        low, high = map(float, _call(function, a, b))
        mean, half = (a - b).mean(), Z * stats.sem(a - b)
        _demand(low < high, f"The interval [{low:.3f}, {high:.3f}] has its ends in the wrong order.")
        off = abs((low + high) / 2 - mean) / half
        _demand(off < 0.3, f"The interval's middle should be near mean(a) - mean(b) = {mean:+.3f}; it is not.")
        ratios.append((high - low) / (2 * half))
    ratio = np.mean(ratios)
    _demand(ratio < 1.12, f"The interval is {ratio:.1f} times too wide: a hard hand is hard for both checkpoints.")
    _demand(ratio > 0.88, f"The interval is too narrow, {ratio:.2f} of what 95 % needs.")
    _right("hands differ far more than checkpoints do, and what both find hard cancels in the difference.")


def could_be_peak(steps: Sequence[int], run: Run) -> None:
    """The SFT steps whose OOD accuracy cannot be told from the highest one: the paired interval holds 0."""
    _demand(steps is not ..., UNFILLED)
    right = _right_hands(run)
    best = right.mean().idxmax()
    gap = right[[best]].to_numpy() - right
    low = gap.mean() - Z * gap.sem()
    sure, out = ({int(t) for t in low.index[mine]} for mine in (low < -0.003, low > 0.003))
    answer = {int(t) for t in steps}
    strange = answer - {int(t) for t in right}
    _demand(not strange, f"SFT has no checkpoint at {sorted(strange)}.")
    _demand(best in answer, "The step with the highest accuracy is missing: it surely could be the peak.")
    far = answer & out
    _demand(not far, f"{len(far)} of your steps lie below the best one with the whole paired interval.")
    lacking = (sure | {int(best)}) - answer
    _demand(not lacking, f"{len(lacking)} more cannot be told from the best: its paired interval holds 0.")
    rows = ", ".join(f"{t} ({-100 * gap[t].mean():+.1f} points)" for t in sorted(answer - {int(best)}))
    _right(f"step {best} is the highest; not to be told from it: {rows or 'no other'}.")


def _right_hands(run: Run) -> pd.DataFrame:
    """A row an OOD hand, a column an SFT step: was the answer right. The first seed."""
    hands = run.table("hands", "sft")
    mine = hands[(hands["split"] == "ood") & (hands["stage"] == "sft") & (hands["seed"] == run.preset.seed)]
    mine = mine.assign(right=(mine["outcome"] == "correct").astype(float))
    return mine.astype({"problem": str}).pivot(index="problem", columns="step", values="right")


# ---- 02: RL --------------------------------------------------------------------------------------------


def grpo_advantages(function: Callable[[np.ndarray], np.ndarray], run: Run) -> None:
    """The advantages that RL had: rewards [groups, answers] -> [groups, answers]; against those that were recorded."""
    rewards, recorded = (_groups(run, name) for name in ("reward", "advantage"))
    found = np.asarray(_call(function, rewards), dtype=float)
    _demand(found.shape == rewards.shape, f"Shape {found.shape} where the rewards have {rewards.shape}.")
    _demand(np.isfinite(found).all(), "NaN or inf: what is the spread of a group whose rewards are all the same?")
    _demand(np.abs(found.sum(1)).max() < 0.01, "The advantages of a group, a row, should add up to 0.")
    spread = recorded.std(1) > 0
    factor = found.std(1)[spread] / recorded.std(1)[spread]
    _demand(np.ptp(factor) < 0.01, "Each group by its own spread: yours differ from RL's by another factor a group.")
    _demand(abs(factor.mean() - 1) < 0.003, f"{factor.mean():.3f} times RL's everywhere: divide by n, or by n - 1?")
    _demand(np.allclose(found, recorded, atol=3e-3), "The size is right, but not the order or the sign.")
    _right(f"these are the {found.size:,} advantages with which TRL trained; {1 - spread.mean():.0%} of groups are 0.")


def rloo_advantages(function: Callable[[np.ndarray], np.ndarray]) -> None:
    """RLOO's: an answer's reward less the mean reward of the OTHER answers of its group."""
    rewards = np.random.default_rng(2).choice([5.0, -1.0, -3.0, -4.0], (6, 5))
    found = np.asarray(_call(function, rewards), dtype=float)
    _demand(found.shape == rewards.shape, f"Shape {found.shape} where the rewards have {rewards.shape}.")
    true = [[r - np.delete(group, i).mean() for i, r in enumerate(group)] for group in rewards]
    own = rewards - rewards.mean(1, keepdims=True)
    _demand(not np.allclose(found, own), "Close: an answer's own reward still stands in its baseline.")
    _demand(np.allclose(found, true), "Take one group by hand: what did the other answers get on average?")
    ratio = (np.array(true)[own != 0] / own[own != 0]).mean()
    _right(f"it is {ratio:.2f} = n/(n - 1) times the distance from the group's mean; the spread is not divided out.")


def silent_groups(shares: dict[int, float], run: Run) -> None:
    """For each start of RL, the share of its groups from which nothing is learnt: all rewards are the same."""
    _demand(isinstance(shares, dict), UNFILLED if shares is ... else "A dictionary is asked for: start -> share.")
    rollouts = run.table("rollouts", "rl")
    starts = sorted(int(s) for s in rollouts["from_step"].unique())
    _demand(sorted(map(int, shares)) == starts, f"RL started from {starts}; one share for each.")
    for start in starts:
        rewards = _groups(run, "reward", start)
        true, found = float((np.ptp(rewards, axis=1) == 0).mean()), float(shares[start])
        _demand(0 <= found <= 1, "Shares are from 0 to 1.")
        _demand(
            abs(found - true) < 0.002,
            f"Not so from step {start}. A group is one hand in one update: {len(rewards)} of them from there.",
        )
    solved = rollouts.assign(right=rollouts["outcome"] == "correct").groupby("from_step")["right"].mean()
    _right("; ".join(f"from step {s} {shares[s]:.0%}, with {solved[s]:.0%} of the answers right" for s in starts) + ".")


def group_size(answer: int) -> None:
    """How many answers a hand, so that at 5 % success at least half of the groups hold right and wrong ones."""
    n = _number(answer)
    needed = next(i for i in count(1) if 1 - 0.95**i - 0.05**i >= 0.5)
    _demand(n == int(n) and n > 0, "A whole number of answers is asked for.")
    held = 1 - 0.95**n - 0.05**n
    _demand(held >= 0.5, f"With {n:g} answers {held:.0%} of the groups hold both.")
    _demand(n <= needed, f"Enough, but one answer fewer would do: {1 - 0.95 ** (n - 1) - 0.05 ** (n - 1):.0%} do then.")
    _right(f"with {needed} answers {held:.0%} of the groups hold both; with 8, as in preset tiny, {1 - 0.95**8:.0%}.")


def _groups(run: Run, column: str, start: int | None = None) -> np.ndarray:
    """A column of RL's samples as [groups, answers], in the order in which they were made; of one start, or all."""
    played = run.table("rollouts", "rl")
    played = played if start is None else played[played["from_step"] == start]
    return played[column].to_numpy(float).reshape(-1, run.preset.rl_samples)


# ---- 03: rotation and surgery --------------------------------------------------------------------------


def principal_angles(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """angles(A, B), radians, of A and B [m, k] with orthonormal columns; made-up planes of known angles."""
    rng = np.random.default_rng(3)
    for known in ((0.1, 0.4, 1.2), (1e-9, 1e-5, 0.3), (0.0, 1e-12, 1.0), (1e-3, 1.5, np.pi / 2 - 1e-9)):
        angles = np.array(known)
        frame, mix, other = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (9, 3, 3))
        A, outside = frame[:, :3], frame[:, 3:6]
        B = A * np.cos(angles) + outside * np.sin(angles)
        found = np.sort(np.asarray(_call(function, A @ mix, B @ other), dtype=float).ravel())
        _demand(found.shape == angles.shape, f"{found.size} angles; planes of dimension 3 have 3.")
        _demand(np.isfinite(found).all(), "NaN: rounding may push a cosine or a sine a little above 1.")
        _demand(not np.allclose(np.radians(found), angles, atol=1e-6), "These are degrees; radians are asked for.")
        _demand(np.allclose(found, angles, atol=1e-6), f"Angles of {angles.round(3)} come out as {found.round(3)}.")
        error = np.abs(found - angles)
        _demand(error[angles < 0.01].max(initial=0) < 1e-13, "Small angles are lost: near 0 the cosine is flat.")
        _demand(error[angles > 1.4].max(initial=0) < 1e-13, "Angles near 90° are lost: there the sine is flat.")
    _right("in float64 a cosine cannot tell angles below about 1e-8 from 0; the sine can, down to 1e-16.")


def wedin(function: Callable[[np.ndarray, np.ndarray, float, int], float]) -> None:
    """bound(values0, values1, norm, k), radians: a true bound on every angle of the leading k vectors, and a good one.

    values0 and values1 descend; norm is the largest singular value of W1 - W0.
    """
    rng, close = np.random.default_rng(4), 0.01
    quarter_turn = (np.diag([1.0, 0.0]), np.array([[0.5, close], [close, 0.5]]))  # 45°, with a change of half the gap
    pairs = [quarter_turn, quarter_turn[::-1]]
    for size in (1e-6, 0.03, 0.1, 0.3, 1.0):
        W0 = np.linalg.qr(rng.normal(size=(6, 4)))[0] * [4.0, 3.0, 1.5, 0.2] @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
        D = rng.normal(size=(6, 4))
        pairs.append((W0, W0 + D * size / np.linalg.norm(D, 2)))
    for W0, W1 in pairs:
        for k in range(1, W0.shape[1]):
            both = compare(W0, W1, k)
            norm = float(both.change[0])
            bound = float(_call(function, both.values0, both.values1, norm, k))
            largest = max(both.angles_left.max(), both.angles_right.max())
            gap = both.values0[k - 1] - both.values0[k] - norm  # what Weyl's inequality leaves of it: the weakest way
            weak = np.arcsin(norm / gap) if gap > norm else np.pi / 2
            at = f"values {both.values0.round(2)} and {both.values1.round(2)}, norm {norm:.2g}, k = {k}"
            _demand(np.isfinite(bound), f"No number for {at}: what if the change is larger than the gap?")
            _demand(bound <= np.pi / 2 + 1e-9, f"An angle cannot exceed 90°, pi/2: {at} gives {bound:.2f}.")
            _demand(bound >= largest - 1e-9, f"Not a bound: {at} gives {bound:.3f}, and an angle is {largest:.3f}.")
            _demand(bound <= weak + 1e-9, f"True, but weak: {at} gives {bound:.3g}. Between which values is the gap?")
    _right("the gap lies between one matrix's k-th and the OTHER's next value; where it closes, an angle says nothing.")


def restored(function: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> None:
    """edit(recipient, donor, k): the recipient [m, n] with the donor's leading k vectors and its own values."""
    rng = np.random.default_rng(5)
    for shape in ((5, 5), (7, 4), (4, 6)):
        recipient, donor = rng.normal(size=(2, *shape))
        for k in (1, 2, min(shape)):
            found = np.asarray(_call(function, recipient.copy(), donor.copy(), k), dtype=float)
            _demand(found.shape == shape, f"Shape {found.shape} where the matrices have {shape}.")
            own, other = spectrum(recipient), spectrum(donor)
            true = restore(torch.tensor(recipient), torch.tensor(donor), "vectors", k).numpy()
            new, old = ((x.left[:, :k] * x.values[:k]) @ x.right[:, :k].T for x in (other, own))
            theirs = recipient + (new - old).numpy()
            values = restore(torch.tensor(recipient), torch.tensor(donor), "values", k).numpy()
            _demand(not np.allclose(found, theirs), "The donor's singular values have come along with its vectors.")
            _demand(not np.allclose(found, values), "These are the donor's values and the recipient's vectors.")
            _demand(
                np.allclose(found, true), f"Not so for k = {k} at {shape}: both sides change, the other terms stay."
            )
    _right("signs need no care, for u and v of a pair flip together; that is why the pair is replaced, never one side.")


def fewest_directions(chosen: Sequence[tuple[str, int]], operation: Operation) -> None:
    """Directions (matrix, index), the most important first, that give half of what was lost back, none to spare."""
    _demand(chosen is not ..., UNFILLED)
    chosen = list(dict.fromkeys((str(name), int(i)) for name, i in chosen))
    strange = [d for d in chosen if not (s := operation.spectra.get(d[0])) or not 0 <= d[1] < len(s[0].values)]
    _demand(not strange, f"{len(strange)} directions do not exist, such as {strange[:1]}.")
    back = operation.recovered(chosen)
    _demand(back >= 0.5, f"These {len(chosen)} directions give {back:.0%} of the lost {operation.by} back.")
    fewer = chosen[: len(chosen) * 3 // 4]
    _demand(operation.recovered(fewer) < 0.5, f"The first {len(fewer)} of your {len(chosen)} do it alone.")
    plain = operation.plain
    _demand(len(chosen) < plain, f"The leading share of every matrix needs {plain}, no more than your {len(chosen)}.")
    _right(
        f"{len(chosen)} of {operation.directions} directions give {back:.0%} of the lost {operation.by} back; "
        f"the leading share of every matrix takes {plain}. Can you beat yourself?"
    )


# ---- 04: evidence --------------------------------------------------------------------------------------


def hands_needed(answer: int) -> None:
    """How many hands make the 95 % interval of an accuracy near the paper's peak at most 2 points to either side."""
    n, p = max(_number(answer), 1), PAPER["stages"]["llama-3.2-11b"]["ood"]["sft_peak"] / 100

    def half(n: int, method: str | None) -> float:
        if method is None:
            return Z * (p * (1 - p) / n) ** 0.5
        ends = stats.binomtest(round(p * n), n).proportion_ci(0.95, method)
        return (ends.high - ends.low) / 2

    sizes = range(1000, 2000, 10)
    needed = [next(n for n in sizes if half(n, method) <= 0.02) for method in (None, "wilson", "exact")]
    _demand(n >= 0.985 * min(needed), f"With {n:g} hands the interval reaches {100 * half(int(n), None):.1f} points.")
    _demand(n <= 1.015 * max(needed), f"{n:g} are enough, and more than an accuracy near {p:.1%} needs.")
    qwen = PAPER["stages"]["qwen-2.5-7b"]["ood"]
    healed = qwen["rl"] - qwen["sft_moderate"]
    _right(f"the paper has 234 hands: ±{100 * half(234, None):.1f} points; its healing of Qwen is {healed:.1f} points.")


def best_of_many(answer: float) -> None:
    """How far, in points, the best of 15 checkpoints lies above what all truly have: 30 %, each on 234 other hands."""
    points = _number(answer)
    best = np.random.default_rng(6).binomial(234, 0.3, (20_000, 15)).max(1)
    true, one = 100 * (best.mean() / 234 - 0.3), 100 * (0.3 * 0.7 / 234) ** 0.5
    _demand(points > 1, "More: 15 noisy numbers, and one takes the largest. In points, such as 2.5.")
    _demand(
        abs(points - true) < 0.35, f"The standard error of ONE accuracy is {one:.1f} points; draw 15, take the best."
    )
    _right(f"{true:.1f} points out of nothing: C1 picks the peak on half of the hands and measures it on the others.")


Accuracies = np.ndarray  # of each seed, after all is done


def c4_rules(
    paper: Callable[[Accuracies, Accuracies, Accuracies], str],
    controlled: Callable[[Accuracies, Accuracies, Accuracies, dict[str, Accuracies]], str],
) -> None:
    """Two rules on OOD accuracies a seed: paper(start, rl, peak) and controlled(start, rl, peak, controls) -> verdict.

    `supported`, `not supported` or `inconclusive`, at 95 %, paired within a seed. Made-up runs whose verdicts are
    clear; then both on the campaign.
    """
    noise = np.array([1, -1, 2, -2, 1, -1, 0, 0]) * 0.004
    start = np.array([0.02, 0.04, 0.1, 0.2, 0.28, 0.05, 0.15, 0.12])  # seeds differ more than any gain
    peak = start + 0.25 + noise[::-1]
    yes, no, open_ = VERDICTS
    cases = [  # RL's gain, the controls' gains, noise; what each rule must and must not say
        ("RL gains 10 points, both controls 2", 0.1, (0.02, 0.02), 1, {yes}, {yes}),
        ("RL and continued SFT gain 10 points, rejection sampling 2", 0.1, (0.1, 0.02), 1, {yes}, {no, open_}),
        ("RL gains 10 points, continued SFT 2, rejection sampling 15", 0.1, (0.02, 0.15), 1, {yes}, {no}),
        ("nobody gains anything but noise", 0.0, (0.0, 0.0), 4, {open_}, {open_}),
        ("RL loses 5 points, both controls lose 10", -0.05, (-0.1, -0.1), 1, {no}, {no}),
        ("RL ends 10 points above the peak, the controls gain 2", 0.35, (0.02, 0.02), 1, {no}, {no}),
    ]
    for case, gain, gains, size, by_paper, by_controls in cases:
        rl = start + gain + size * noise
        others = zip(("sft_continued", "rejection_sampling"), gains, strict=True)
        controls = {name: start + g + size * np.roll(noise, 3) for name, g in others}
        for which, found, allowed in (
            ("paper's", _call(paper, start, rl, peak), by_paper),
            ("controlled", _call(controlled, start, rl, peak, controls), by_controls),
        ):
            _demand(found in VERDICTS, f"A verdict is one of {', '.join(VERDICTS)}, not {found!r}.")
            _demand(found in allowed, f"A made-up run in which {case}: your {which} rule says {found!r}.")
    rows = healing.wide(Campaign().rows("confirm"), "ood").loc[("one-try", 100)]
    ends = [rows[c].to_numpy() for c in ("start", "rl", "peak")]
    verdicts = paper(*ends), controlled(*ends, {c: rows[c].to_numpy() for c in healing.TRAINED})
    _right(
        f"on {len(rows)} seeds of the campaign, from step 100, the paper's rule says {verdicts[0]!r}, yours with "
        f"controls {verdicts[1]!r}: the same numbers, another question."
    )


def control_against_c4(design: dict[str, Any]) -> None:
    """A comparison in the committed campaign that could refute C4: a dictionary of

    regime, from_step, arm, metric: which rows; margin: the smallest healing worth the name, as an accuracy;
    refutes(low, high) -> bool: whether an interval of OOD(RL) - OOD(arm) refutes that RL heals more than the arm.
    """
    _demand(isinstance(design, dict), UNFILLED)
    names = ("regime", "from_step", "arm", "metric", "margin", "refutes")
    lacking = [n for n in names if n not in design or design[n] is ...]
    _demand(len(lacking) < len(names), UNFILLED)
    _demand(not lacking, f"The design does not say: {', '.join(lacking)}.")
    regime, start, arm, metric, margin, refutes = (design[n] for n in names)
    campaign = Campaign()
    table, seeds = campaign.table(), campaign.seeds("confirm")
    metrics = sorted(m for m in table["metric"].unique() if m.startswith("accuracy"))
    _demand(metric in metrics, f"C4 is about OOD accuracy; the table has {', '.join(metrics)}.")
    wide = healing.wide(table, "ood", metric)
    starts = sorted({(r, int(t)) for r, t, _ in wide.index})
    _demand((regime, start) in starts, f"The campaign has no RL there; it has {starts}.")
    mine = wide.loc[(regime, start)].dropna(axis=1, how="all")
    _demand(arm not in ("rl", "start", "peak"), "That is no control: it does not train, or it is RL itself.")
    _demand(arm in mine, f"{regime} from {start} has no such arm; it has {', '.join(mine.columns)}.")
    _demand(arm != "interpolation_peak", "That arm knows where the OOD peak was: it has seen OOD hands, RL has not.")
    fair = (*healing.TRAINED, "random_reward", "format_reward")
    _demand(arm in fair, "That arm makes no updates: if it differs, is it what was learnt, or that anything was?")
    _demand(
        set(seeds) & set(mine.index),
        f"Run on seed {', '.join(map(str, mine.index))} alone, where settings were sought: no interval, no test.",
    )
    found = healing.effects(table[(table["regime"] == regime)], metric, seeds)
    effect = next(e for e in found if e.start == start)
    lost = float((mine["peak"] - mine["start"]).loc[mine.index.isin(seeds)].mean())
    _demand(lost > healing.MARGIN, "Nothing was lost at that start, so that nothing could be healed.")
    _demand(
        effect.learnt.low > 0, "RL's own return did not rise there: RL that learns nothing was not put to the test."
    )
    _demand(arm not in effect.behind, "That arm learns less on ID hands than RL: forgetting less is then no feat.")
    margin, gap = _number(margin), effect.against[arm]
    half = (gap.high - gap.low) / 2
    _demand(half <= margin, f"This interval reaches {100 * half:.1f} points to either side: too wide for your margin.")
    _demand(
        margin <= lost / 4, f"{100 * lost:.0f} points were lost; a margin of {100 * margin:.0f} overlooks a healing."
    )
    for low, high, holds in ((-4, -2, True), (2, 4, False), (0.5, 6, False), (-3, 5, False)):  # in margins
        said = bool(_call(refutes, low * margin, high * margin))
        why = {True: "wholly below 0", False: "that leaves room for a healing"}[holds]
        _demand(said == holds, f"Your rule says {said} of [{low * margin:+.3f}, {high * margin:+.3f}], {why}.")
    verdict = "refutes" if refutes(gap.low, gap.high) else "does not refute"
    _right(
        f"OOD(RL) - OOD({arm}) is {100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] points on "
        f"{gap.n} seeds, {100 * lost:.0f} were lost. By your rule that {verdict} C4 here; it could have done either."
    )
