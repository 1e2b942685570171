"""The checks of the exercises: `checks.one_way(answer)` prints "Right" and why, or raises `Wrong`.

A check computes what is asked in another way, or asks for what every right answer has, so that it takes any right one.
What it says of a wrong answer names the fault and does not give the answer away. Numbers are read from a run's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property, wraps
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from oodlib import Run, ensure
from oodlib.analysis import healing, mitigations, selection
from oodlib.analysis.claims import PAPER, VERDICTS
from oodlib.analysis.evidence import NOTHING
from oodlib.analysis.plan import Plan
from oodlib.analysis.stats import Estimate, over_seeds
from oodlib.analysis.sweep import Sweep
from oodlib.registry import BASELINES
from oodlib.spectral import compare, restore, spectrum
from oodlib.tasks.general_points import FACES, RULES, TASK
from oodlib.tasks.general_points.checker import judge
from oodlib.widgets.models import Bench, Models

Z = stats.norm.ppf(0.975)
UNFILLED = "Fill in the cell above first."


class Wrong(AssertionError):
    """An answer that is not right. The message says what it lacks; a notebook shows it without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def demand(holds: Any, message: str) -> None:
    if not holds:
        raise Wrong(message)


def approve(insight: str) -> None:
    print(f"Right: {insight}")


def as_number(answer: Any) -> float:
    demand(answer is not ..., UNFILLED)
    demand(isinstance(answer, (int, float, np.number)), f"One number is asked for, not {answer!r}.")
    return float(answer)


def call(function: Any, *arguments: Any) -> Any:
    """What a reader's function returns; `Wrong` where it is not written yet."""
    demand(callable(function), "A function is asked for; give its name, without brackets.")
    try:
        result = function(*arguments)
    except NotImplementedError:
        raise Wrong(UNFILLED) from None
    demand(result is not None and result is not ..., "The function returns nothing.")
    return result


def call_array(function: Any, *arguments: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array of floats that a reader's function returns, of the shape that is asked for."""
    array = np.asarray(call(function, *arguments), dtype=float)
    demand(array.shape == shape, f"Shape {array.shape} where {shape} is asked for.")
    return array


def check(function: Callable[..., None]) -> Callable[..., None]:
    """Say `Wrong` also where an answer is not of the type that is asked for."""

    @wraps(function)
    def checked(*arguments: Any) -> None:
        try:
            function(*arguments)
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            about = f"{type(error).__name__}: {error}"
            raise Wrong(f"The answer has another form than asked for, or your function fails: {about}.") from error

    return checked


# ---- the task and SFT ---------------------------------------------------------------------------------


@check
def one_way(cards: Sequence[str]) -> None:
    """Four cards that can make 24 under the ID rule and cannot under the OOD rule."""
    demand(cards is not ..., UNFILLED)
    splits = (TASK.splits.trained.name, TASK.splits.headline.name)
    try:
        trained, headline = (TASK.problem(cards, RULES[name]).numbers for name in splits)
    except (ValueError, TypeError) as error:
        raise Wrong(f"{error}.") from None
    demand(trained != headline, "Both rules read this hand alike, so what one can make the other can.")
    demand(TASK.solutions(trained), f"Under the ID rule this is {trained}, which cannot make 24.")
    ways = len(TASK.solutions(headline))
    demand(ways == 0, f"Under the OOD rule this is {headline}, which makes 24 in {ways} way(s).")
    hands, solvable = TASK.split(splits[0]), {p.cards for p in TASK.split(splits[1])}
    alike = sum(p.cards not in solvable and bool({*p.cards} & {*FACES}) for p in hands)
    approve(f"SFT sees {alike} hands of this kind; the OOD split leaves them out, for it deals solvable hands only.")


@check
def reward(function: Callable[[str, tuple[int, ...], Fraction | None], float]) -> None:
    """reward(formula, numbers, value) as the checker pays it, for formulas that keep to the grammar."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        numbers = tuple(map(int, rng.integers(1, 14, 4)))
        formula, value = _formula(numbers, rng)
        verdict, paid = judge(formula, numbers, 24), float(call(function, formula, numbers, value))
        about = f"For {formula!r}, worth {value}, on the hand {numbers} you pay {paid:g}."
        rule = verdict.outcome.replace("_", " ")
        demand(paid == verdict.reward, f"{about} Look at the rule on answers that are {rule!r} again.")
    approve("wrong numbers cost 2 or 4, a wrong value 1: the reward minds a misread rule more than a miscalculation.")


def _formula(numbers: tuple[int, ...], rng: np.random.Generator) -> tuple[str, Fraction | None]:
    """A formula that keeps to the grammar, mostly of these numbers, and its value (None: there is none)."""
    used, some = list(numbers), int(rng.integers(1, 4))
    fault = rng.choice(["none", "other numbers", "too few", "too many", "foreign sign"])
    if fault == "other numbers":
        used[:some] = map(int, rng.integers(1, 14, some))
    if fault in ("too few", "too many"):
        used = used[some:] if fault == "too few" else [*used, *used[:some]]
    if fault not in ("too many", "foreign sign") and rng.random() < 0.4 and (solved := TASK.solutions(used)):
        return str(rng.choice(solved)), Fraction(24)  # perhaps of another hand
    text, value = str(used[0]), Fraction(used[0])
    for n in used[1:]:
        mark = rng.choice(list("+-*/"))
        text, value = f"({text}{mark}{n})", {"+": value + n, "-": value - n, "*": value * n, "/": value / n}[mark]
    return (text + rng.choice(["x", "^", "a", "="]), None) if fault == "foreign sign" else (text, value)


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
    right = right_hands(run)
    best = right.mean().idxmax()
    gap = right[[best]].to_numpy() - right
    low = gap.mean() - Z * gap.sem()
    sure, out = ({int(t) for t in low.index[which]} for which in (low < -0.003, low > 0.003))
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


@check
def falls_by_corner(falls: dict[str, tuple[float, float]], run: Run) -> None:
    """Of each corner the paired interval of accuracy at the OOD peak less that at the end, of the first seed."""
    demand(isinstance(falls, dict), UNFILLED if falls is ... else "A dictionary is asked for: corner -> (low, high).")
    names = run.splits.names
    demand(set(falls) == set(names), f"One interval for each of {', '.join(names)}, as the column `split` has them.")
    steps = run.peak_step(run.config.seed), run.config.sft.steps
    told = []
    for split in run.splits:
        at_peak, at_end = (right_hands(run, split.name)[step] for step in steps)
        low, high = map(float, falls[split.name])
        mean, half = (at_peak - at_end).mean(), Z * (at_peak - at_end).sem()
        demand(low < high, f"{split.label}: the ends are in the wrong order.")
        off = abs((low + high) / 2 - mean)
        demand(off < 0.3 * half, f"{split.label}: the middle is not peak - end; from step {steps[0]} to {steps[1]}.")
        ratio = (high - low) / (2 * half)
        demand(0.9 < ratio < 1.1, f"{split.label}: {ratio:.1f} times as wide as the paired interval.")
        told.append(f"{split.label} {100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
    approve(f"points lost from peak to end: {'; '.join(told)}. Which of the two changes goes with the loss?")


def right_hands(run: Run, split: str | None = None) -> pd.DataFrame:
    """Of the first seed, a row a hand of a split (OOD), a column an SFT step: was the answer right (1 or 0)."""
    split = split or run.splits.headline.name
    hands = run.table("hands", "sft").query("split == @split and seed == @run.config.seed")
    hands = hands.assign(right=(hands["outcome"] == "correct").astype(float))
    return hands.astype({"problem": str}).pivot(index="problem", columns="step", values="right")


# ---- reinforcement learning ---------------------------------------------------------------------------


@check
def grpo_advantages(function: Callable[[np.ndarray], np.ndarray], run: Run) -> None:
    """The advantages that RL had: rewards [groups, answers] -> [groups, answers]; against those that were recorded."""
    rewards, recorded = (in_groups(run, name) for name in ("reward", "advantage"))
    found = call_array(function, rewards, shape=rewards.shape)
    demand(np.isfinite(found).all(), "NaN or inf: what is the spread of a group whose rewards are all the same?")
    demand(np.abs(found.sum(1)).max() < 0.01, "The advantages of a group, a row, should add up to 0.")
    spread = recorded.std(1) > 0
    factor = found.std(1)[spread] / recorded.std(1)[spread]
    demand(np.ptp(factor) < 0.01, "Each group by its own spread: yours differ from RL's by another factor a group.")
    demand(abs(factor.mean() - 1) < 0.003, f"{factor.mean():.3f} times RL's everywhere: divide by n, or by n - 1?")
    demand(np.allclose(found, recorded, atol=3e-3), "The size is right, but not the order or the sign.")
    approve(f"these are the {found.size:,} advantages with which TRL trained; {1 - spread.mean():.0%} of groups are 0.")


@check
def rloo_advantages(function: Callable[[np.ndarray], np.ndarray]) -> None:
    """RLOO's: an answer's reward less the mean reward of the OTHER answers of its group."""
    rewards = np.random.default_rng(2).choice([5.0, -1.0, -3.0, -4.0], (6, 5))
    found = call_array(function, rewards, shape=rewards.shape)
    true = [[r - np.delete(group, i).mean() for i, r in enumerate(group)] for group in rewards]
    own = rewards - rewards.mean(1, keepdims=True)
    demand(not np.allclose(found, own), "Close: an answer's own reward still stands in its baseline.")
    demand(np.allclose(found, true), "Take one group by hand: what did the other answers get on average?")
    ratio = (np.array(true)[own != 0] / own[own != 0]).mean()
    approve(f"it is {ratio:.2f} = n/(n - 1) times the distance from the group's mean; the spread is not divided out.")


@check
def silent_groups(shares: dict[int, float], run: Run) -> None:
    """For each start of RL, the share of its groups from which nothing is learnt: all rewards are the same."""
    demand(isinstance(shares, dict), UNFILLED if shares is ... else "A dictionary is asked for: start -> share.")
    rollouts = run.table("rollouts", "rl")
    starts = sorted(int(s) for s in rollouts["from_step"].unique())
    demand(sorted(map(int, shares)) == starts, f"RL started from {starts}; one share for each.")
    for start in starts:
        silent = np.ptp(in_groups(run, "reward", start), axis=1) == 0
        demand(0 <= shares[start] <= 1, "Shares are from 0 to 1.")
        about = f"A group is one hand in one update: {len(silent)} of them from there."
        demand(abs(shares[start] - silent.mean()) < 0.002, f"Not so from step {start}. {about}")
    right = (rollouts["outcome"] == "correct").groupby(rollouts["from_step"]).mean()
    each = (f"from step {s} {shares[s]:.0%}, with {right[s]:.0%} of the answers right" for s in starts)
    approve("; ".join(each) + ".")


@check
def group_size(answer: int) -> None:
    """How many answers a hand, so that at 5 % success at least half of the groups hold right and wrong ones."""
    n = as_number(answer)
    needed = next(i for i in count(1) if 1 - 0.95**i - 0.05**i >= 0.5)
    demand(n == int(n) and n > 0, "A whole number of answers is asked for.")
    held, fewer = (1 - 0.95**m - 0.05**m for m in (n, n - 1))
    demand(held >= 0.5, f"With {n:g} answers {held:.0%} of the groups hold both.")
    demand(n <= needed, f"Enough, but one answer fewer would do: {fewer:.0%} do then.")
    approve(f"with {needed} answers {held:.0%} of the groups hold both; with 8, as in preset tiny, {1 - 0.95**8:.0%}.")


def in_groups(run: Run, column: str, start: int | None = None) -> np.ndarray:
    """A column of RL's samples as [groups, answers], in the order in which they were made; of one start, or all."""
    samples = run.table("rollouts", "rl")
    samples = samples if start is None else samples[samples["from_step"] == start]
    return samples[column].to_numpy(float).reshape(-1, run.config.rl.samples)


# ---- rotation and surgery -----------------------------------------------------------------------------


@check
def principal_angles(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """angles(A, B), radians, of A and B [m, k] with orthonormal columns; made-up planes of known angles."""
    rng = np.random.default_rng(3)
    for known in ((0.1, 0.4, 1.2), (1e-9, 1e-5, 0.3), (0.0, 1e-12, 1.0), (1e-3, 1.5, np.pi / 2 - 1e-9)):
        angles = np.array(known)
        frame, mix, other = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (9, 3, 3))
        A, outside = frame[:, :3], frame[:, 3:6]
        B = A * np.cos(angles) + outside * np.sin(angles)
        found = np.sort(call_array(function, A @ mix, B @ other, shape=(3,)))
        demand(np.isfinite(found).all(), "NaN: rounding may push a cosine or a sine a little above 1.")
        demand(not np.allclose(np.radians(found), angles, atol=1e-6), "These are degrees; radians are asked for.")
        demand(np.allclose(found, angles, atol=1e-6), f"Angles of {angles.round(3)} come out as {found.round(3)}.")
        small, large = (np.abs(found - angles)[which].max(initial=0) for which in (angles < 0.01, angles > 1.4))
        demand(small < 1e-13, "Small angles are lost: near 0 the cosine is flat (scipy too loses some).")
        demand(large < 1e-13, "Angles near 90° are lost: there the sine is flat.")
    approve("in float64 a cosine cannot tell angles below about 1e-8 from 0; the sine can, down to 1e-16.")


@check
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
            bound = float(call(function, both.values0, both.values1, norm, k))
            largest = max(both.angles_left.max(), both.angles_right.max())
            gap = both.values0[k - 1] - both.values0[k] - norm  # what Weyl's inequality leaves of it: the weakest way
            weak = np.arcsin(norm / gap) if gap > norm else np.pi / 2
            at = f"values {both.values0.round(2)} and {both.values1.round(2)}, norm {norm:.2g}, k = {k}"
            demand(np.isfinite(bound), f"No number for {at}: what if the change is larger than the gap?")
            demand(bound <= np.pi / 2 + 1e-9, f"An angle cannot exceed 90°, pi/2: {at} gives {bound:.2f}.")
            demand(bound >= largest - 1e-9, f"Not a bound: {at} gives {bound:.3f}, and an angle is {largest:.3f}.")
            demand(bound <= weak + 1e-9, f"True, but weak: {at} gives {bound:.3g}. Between which values is the gap?")
    approve("the gap is between one matrix's k-th and the OTHER's next value; where it closes, an angle says nothing.")


@check
def restored(function: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> None:
    """edit(recipient, donor, k): the recipient [m, n] with the donor's leading k vectors and its own values."""
    rng = np.random.default_rng(5)
    for shape in ((5, 5), (7, 4), (4, 6)):
        recipient, donor = rng.normal(size=(2, *shape))
        for k in (1, 2, min(shape)):
            found = call_array(function, recipient.copy(), donor.copy(), k, shape=shape)
            pair = torch.tensor(recipient), torch.tensor(donor)
            vectors, values = (restore(*pair, part, k).numpy() for part in ("vectors", "values"))
            old, new = ((x.left[:, :k] * x.values[:k]) @ x.right[:, :k].T for x in map(spectrum, pair))
            both = recipient + (new - old).numpy()
            demand(not np.allclose(found, both), "The donor's singular values have come along with its vectors.")
            demand(not np.allclose(found, values), "These are the donor's values and the recipient's vectors.")
            about = f"Not so for k = {k} at {shape}: both sides change, the other terms stay."
            demand(np.allclose(found, vectors), about)
    approve("signs need no care: u and v of a pair flip together, so the pair is replaced and never one side alone.")


class Operation(Bench):
    """A patient: the weights that lost OOD accuracy, those that had it, and what restored directions bring back.

    donor and recipient are folders of weights; None: the OOD peak and the end of the run's SFT, which is trained here
    where its checkpoints are not (tiny: three to four minutes). spectra: for each matrix, embeddings too, the
    Spectrum of the recipient and that of the donor. by: "accuracy", or "loss" (of right answers, nats a token) where
    the donor has less than 5 points more; both on OOD hands. ends: what recipient and donor have of it.
    """

    def __init__(self, run: Run, donor: str | None = None, recipient: str | None = None):
        if not (donor and recipient):
            ensure(run, "sft")
            models = Models(run)
            _, peak, end, *_ = models.keys
            if models.missing(peak, end):
                print("no checkpoints here: SFT is trained now (preset tiny: three to four minutes)")
                models.make([peak, end])
            recipient, donor = recipient or models.folder(end), donor or models.folder(peak)
        super().__init__(Path(recipient), Path(donor), run.config, embeddings=True)
        for self.by in ("accuracy", "loss"):
            self.ends = self._score(self.recipient), self._score(self.donor)
            if self.ends[1] - self.ends[0] >= NOTHING:
                break

    @property
    def directions(self) -> int:
        """How many singular directions all matrices have."""
        return sum(len(recipient.values) for recipient, _ in self.spectra.values())

    def recovered(self, chosen: Sequence[tuple[str, int]]) -> float:
        """The share of what was lost that these directions, (matrix, index from 0), bring back."""
        state, indices = dict(self.recipient), {}
        for name, i in chosen:
            indices.setdefault(name, set()).add(int(i))
        for name, some in indices.items():
            state[name] = restore(*self.spectra[name], indices=sorted(some)).to(state[name])
        lost, had = self.ends
        return (self._score(state) - lost) / (had - lost)

    @cached_property
    def plain(self) -> int:
        """How many directions it takes if the leading share of EVERY matrix is restored: the bar to beat."""
        for share in np.arange(0.1, 1, 0.1):
            chosen = [(n, i) for n, (own, _) in self.spectra.items() for i in range(round(share * len(own.values)))]
            if self.recovered(chosen) >= 0.5:
                return len(chosen)
        return self.directions

    def _score(self, state: dict[str, torch.Tensor]) -> float:
        self.model.load_state_dict(state, strict=False)
        judged = self.evaluate(self.task.splits.headline.name, self.config.eval.every, loss=self.by == "loss")
        return float(-judged["loss"].mean() if self.by == "loss" else (judged["outcome"] == "correct").mean())


@check
def fewest_directions(chosen: Sequence[tuple[str, int]], operation: Operation) -> None:
    """Directions (matrix, index), the most important first, that give half of what was lost back, none to spare."""
    demand(chosen is not ..., UNFILLED)
    chosen = list(dict.fromkeys((str(name), int(i)) for name, i in chosen))
    strange = [d for d in chosen if not (s := operation.spectra.get(d[0])) or not 0 <= d[1] < len(s[0].values)]
    demand(not strange, f"{len(strange)} directions do not exist, such as {strange[:1]}.")
    back = operation.recovered(chosen)
    demand(back >= 0.5, f"These {len(chosen)} directions give {back:.0%} of the lost {operation.by} back.")
    fewer = chosen[: len(chosen) * 3 // 4]
    demand(operation.recovered(fewer) < 0.5, f"The first {len(fewer)} of your {len(chosen)} do it alone.")
    plain = operation.plain
    demand(len(chosen) < plain, f"The leading share of every matrix needs {plain}, no more than your {len(chosen)}.")
    approve(
        f"{len(chosen)} of {operation.directions} directions give {back:.0%} of the lost {operation.by} back; "
        f"the leading share of every matrix takes {plain}. Can you beat yourself?"
    )


# ---- evidence -----------------------------------------------------------------------------------------


@check
def hands_needed(answer: int) -> None:
    """How many hands make the 95 % interval of an accuracy near the paper's peak at most 2 points to either side."""
    n, p = max(as_number(answer), 1), PAPER["stages"]["llama-3.2-11b"]["ood"]["sft_peak"] / 100
    half, needed = Z * (p * (1 - p) / n) ** 0.5, Z**2 * p * (1 - p) / 0.02**2  # exact intervals need up to 4 % more
    demand(n >= needed - 1, f"With {n:g} hands the interval reaches {100 * half:.2f} points.")
    demand(n <= 1.05 * needed, f"{n:g} are enough, and more than an accuracy near {p:.1%} needs.")
    qwen, paper = PAPER["stages"]["qwen-2.5-7b"]["ood"], 100 * half * (n / 234) ** 0.5
    healed = qwen["rl"] - qwen["sft_moderate"]
    approve(f"the paper has 234 hands: ±{paper:.1f} points; its healing of Qwen is {healed:.1f} points.")


@check
def best_of_many(answer: float) -> None:
    """How far, in points, the best of 15 checkpoints lies above what all truly have: 30 %, each on 234 other hands."""
    points = as_number(answer)
    best = np.random.default_rng(6).binomial(234, 0.3, (20_000, 15)).max(1)
    true, one = 100 * (best.mean() / 234 - 0.3), 100 * (0.3 * 0.7 / 234) ** 0.5
    demand(points > 1, "More: 15 noisy numbers, and one takes the largest. In points, such as 2.5.")
    about = f"The standard error of ONE accuracy is {one:.1f} points; draw 15, take the best."
    demand(abs(points - true) < 0.35, about)
    approve(f"{true:.1f} points out of nothing: C1 picks the peak on half of the hands and measures it on the others.")


Accuracies = np.ndarray  # of each seed, after all is done


@check
def c4_rules(
    paper: Callable[[Accuracies, Accuracies, Accuracies], str],
    compared: Callable[[Accuracies, Accuracies, Accuracies, dict[str, Accuracies]], str],
) -> None:
    """Two rules on OOD accuracies a seed: paper(start, rl, peak) and compared(start, rl, peak, baselines) -> verdict.

    `supported`, `not supported` or `inconclusive`, at 95 %, paired within a seed. Made-up runs whose verdicts are
    clear; then both on the sweep.
    """
    noise = np.array([1, -1, 2, -2, 1, -1, 0, 0]) * 0.004
    start = np.array([0.02, 0.04, 0.1, 0.2, 0.28, 0.05, 0.15, 0.12])  # seeds differ more than any gain
    peak = start + 0.25 + noise[::-1]
    yes, no, open_ = VERDICTS
    cases = [  # RL's gain, the baselines' gains, noise; what each rule may say
        ("RL gains 10 points, both baselines 2", 0.1, (0.02, 0.02), 1, {yes}, {yes}),
        ("RL and continued SFT gain 10 points, rejection sampling 2", 0.1, (0.1, 0.02), 1, {yes}, {no, open_}),
        ("RL gains 10 points, continued SFT 2, rejection sampling 15", 0.1, (0.02, 0.15), 1, {yes}, {no}),
        ("nothing gains anything but noise", 0.0, (0.0, 0.0), 4, {open_}, {open_}),
        ("RL is 1 point up, in noise of more than that", 0.01, (0.0, 0.0), 4, {open_}, {open_}),
        ("RL loses 5 points, both baselines lose 10", -0.05, (-0.1, -0.1), 1, {no}, {no}),
        ("RL ends 10 points above the peak, the baselines gain 2", 0.35, (0.02, 0.02), 1, {no}, {no}),
    ]
    names = ("sft_continued", "rejection_sampling")
    for case, gain, gains, size, by_paper, by_baselines in cases:
        rl = start + gain + size * noise
        baselines = {name: start + g + size * np.roll(noise, 3) for name, g in zip(names, gains, strict=True)}
        verdicts = call(paper, start, rl, peak), call(compared, start, rl, peak, baselines)
        for which, verdict, allowed in zip(("first", "second"), verdicts, (by_paper, by_baselines), strict=True):
            demand(verdict in VERDICTS, f"A verdict is one of {', '.join(VERDICTS)}, not {verdict!r}.")
            demand(verdict in allowed, f"A made-up run in which {case}: your {which} rule says {verdict!r}.")
    sweep = Sweep()
    rows = healing.wide(sweep.rows("confirm"), sweep.splits.headline.name).loc[("believer", 100)]
    rows = rows[["start", "rl", "peak", *names]].dropna()
    ends = [rows[c].to_numpy() for c in ("start", "rl", "peak")]
    verdicts = paper(*ends), compared(*ends, {c: rows[c].to_numpy() for c in names})
    approve(
        f"on {len(rows)} seeds of the sweep, from step 100, the paper's rule says {verdicts[0]!r}, yours with "
        f"baselines {verdicts[1]!r}: the same numbers, another question."
    )


@check
def baseline_against_c4(design: dict[str, Any]) -> None:
    """A comparison in the committed sweep that could refute C4: a dictionary of

    condition, from_step, arm: which rows; margin: the smallest healing worth the name, as an accuracy;
    refutes(low, high) -> bool: whether an interval of OOD(RL) - OOD(arm) refutes that RL heals more than the arm.
    """
    demand(isinstance(design, dict), UNFILLED)
    names = ("condition", "from_step", "arm", "margin", "refutes")
    lacking = [n for n in names if n not in design or design[n] is ...]
    demand(len(lacking) < len(names), UNFILLED)
    demand(not lacking, f"The design does not say: {', '.join(lacking)}.")
    condition, start, arm, margin, refutes = (design[n] for n in names)
    sweep = Sweep()
    table, splits = sweep.rows("confirm"), sweep.splits
    wide = {split.name: healing.wide(table, split.name) for split in (splits.trained, splits.headline)}
    of_ood = wide[splits.headline.name]
    starts = sorted({(c, int(t)) for c, t, _ in of_ood.index})
    demand((condition, start) in starts, f"The sweep has no RL there; it has {starts}.")
    of_id, of_ood = (dots.loc[(condition, start)].dropna(axis=1, how="all") for dots in wide.values())
    demand(arm not in ("rl", "start", "peak"), "That is no baseline: it does not train, or it is RL itself.")
    demand(arm in of_ood, f"{condition} from {start} has no such arm; it has {', '.join(of_ood.columns)}.")
    demand(healing.counts(arm), "That arm is RL, done otherwise: where it heals, RL heals.")
    trains = BASELINES.get(arm).information != "none"
    demand(trains, "That arm makes no updates: if it differs, is it what was learnt, or that anything was?")
    demand(healing.starts(table, splits).loc[(condition, start), "lost"], "Hardly anything was lost at that start.")
    learnt = rewards_gained(table, condition, start)
    demand(learnt.low > 0, "RL's own reward did not rise there: RL that learns nothing was not put to the test.")
    ahead = healing.difference(of_id, "rl", arm)
    demand(ahead.low <= healing.MARGIN, "That arm learns less on ID hands than RL: forgetting less is then no feat.")
    margin, gap = as_number(margin), healing.difference(of_ood, "rl", arm)
    half = 50 * (gap.high - gap.low)
    demand(half <= 100 * margin, f"This interval reaches {half:.1f} points to either side: too wide for your margin.")
    lost = float((of_ood["peak"] - of_ood["start"]).mean())
    about = f"{100 * lost:.0f} points were lost; a margin of {100 * margin:.0f} overlooks a healing."
    demand(margin <= lost / 4, about)
    open_ = ((2, 4), (0.5, 6), (-3, 5), (-6, 4), (-10, 5), (-1, 1.2))  # in margins, as the next
    for low, high in ((-4, -2), *open_):
        low, high, refuted = low * margin, high * margin, high < 0
        said = bool(call(refutes, low, high))
        why = "wholly below 0" if refuted else "that leaves room for a healing"
        demand(said == refuted, f"Your rule says {said} of [{low:+.3f}, {high:+.3f}], {why}.")
    verdict = "refutes" if refutes(gap.low, gap.high) else "does not refute"
    approve(
        f"OOD(RL) - OOD({arm}) is {100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] points on "
        f"{gap.n} seeds, {100 * lost:.0f} were lost. By your rule that {verdict} C4 here; it could have done either."
    )


def rewards_gained(table: pd.DataFrame, condition: str, start: int) -> Estimate:
    """RL's mean reward in the last tenth of its updates less that in the first, over seeds."""
    ends = table.query("condition == @condition and from_step == @start and arm == 'rl' and stage == 'rl'")
    by_seed = ends.pivot_table("value", "seed", "metric")
    return over_seeds(by_seed["reward_last"] - by_seed["reward_first"])


Along = np.ndarray  # [checkpoints, 2]: ID and OOD accuracy, in the order of the steps, without the base
EQUAL = (  # one path, another path, and what a wrong answer overlooks
    ([[0.6, 0.7], [0.7, 0.5], [0.8, 0.3]], [[0.6, 0.7], [0.7, 0.5]], "The paths are the same, but one stops earlier"),
    (
        [[0.7, 0.6], [0.8, 0.2]],
        [[0.5, 0.5], [0.7, 0.4]],
        "A checkpoint with more ID accuracy than the level also counts",
    ),
    ([[0.5, 0.2], [0.7, 0.1]], [[0.6, 0.3]], "Between checkpoints, the path is a straight line"),
    ([[0.8, 0.2], [0.6, 0.5]], [[0.9, 0.1], [0.7, 0.3]], "The level is taken at the ends, not at the best checkpoints"),
)


@check
def at_equal_id(ahead: Callable[[Along, Along], float]) -> None:
    """OOD accuracy of one path less that of another, at the highest ID accuracy that both reach at their ends."""

    def score(path: Along, level: float) -> float:
        steps = pd.DataFrame(path, columns=["trained", "headline"]).assign(step=range(1, len(path) + 1))
        return mitigations.reached(steps, level)

    rng = np.random.default_rng(18)
    pairs = [(*map(np.array, two), f"{why}: {two}") for *two, why in EQUAL]
    pairs += [(rng.random((5, 2)), rng.random((4, 2)), "The paths are random") for _ in range(30)]
    for one, other, why in pairs:
        level = min(one[-1, 0], other[-1, 0])
        right, yours = score(one, level) - score(other, level), as_number(call(ahead, one.copy(), other.copy()))
        demand(abs(yours - right) < 1e-6, f"{why}. Your answer is {yours:+.3f}; the right one is {right:+.3f}.")
    sweep = Sweep(Plan("mitigations"))
    along = mitigations.at_strengths(sweep.mitigations("mitigations"), sweep.chosen())
    gap = mitigations.difference(mitigations.ends(along), "headline", "lower rate", "plain SFT")
    equal = over_seeds(mitigations.at_equal_accuracy(along, "lower rate", "plain SFT")["difference"])
    approve(
        f"over {equal.n} seeds, the OOD accuracy of a lower rate minus that of plain SFT is {100 * gap.value:+.1f} "
        f"points at the ends and {100 * equal.value:+.1f} points at equal ID accuracy."
    )


@check
def kept_without_ood(keep: Callable[[np.ndarray, np.ndarray, np.ndarray], int]) -> None:
    """A rule that keeps a checkpoint without OOD data: it loses at most half of what the last one loses, and gives up
    at most half of the ID accuracy that the first one gives up."""
    sweep = Sweep(Plan("mitigations"))
    lost, given_up = [], []  # by path: of the choice, the last and the first checkpoint
    for path in selection.paths(sweep.rows("mitigations"), sweep.splits).values():
        path = path[path["step"] > 0].sort_values("step")
        columns = (path[name].to_numpy().copy() for name in ("step", "id_loss", "id_accuracy"))
        place = as_number(call(keep, *columns))
        demand(place in range(len(path)), f"{place:g} is no position in a list of {len(path)} checkpoints.")
        places = [int(place), -1, 0]
        lost.append(path["ood"].max() - path["ood"].to_numpy()[places])
        given_up.append(path["id_accuracy"].max() - path["id_accuracy"].to_numpy()[places])
    (mine, last, _), (price, _, first) = (100 * np.mean(table, axis=0) for table in (lost, given_up))
    demand(
        mine <= last / 2,
        f"The OOD accuracy of your choices is {mine:.1f} points below the peak; the last checkpoints lose {last:.1f}.",
    )
    about = f"Your choices give up too much ID accuracy: {price:.1f} points. The first checkpoints give up {first:.1f}."
    demand(price <= first / 2, about)
    approve(
        f"over {len(lost)} trainings, your choices lie {mine:.1f} points of OOD accuracy below the peak (the last "
        f"checkpoints {last:.1f}) and {price:.1f} points of ID accuracy below the best. This rule was found on these "
        "trainings; try it on others."
    )
