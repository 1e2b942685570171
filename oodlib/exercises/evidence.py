"""The checks of the exercises on evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from oodlib.analysis import healing
from oodlib.analysis.claims import PAPER, VERDICTS
from oodlib.analysis.sweep import Sweep
from oodlib.exercises.checking import UNFILLED, Z, approve, as_number, call, check, demand


@check
def hands_needed(answer: int) -> None:
    """How many hands make the 95 % interval of an accuracy near the paper's peak at most 2 points to either side."""
    n, p = max(as_number(answer), 1), PAPER["stages"]["llama-3.2-11b"]["ood"]["sft_peak"] / 100

    def half(n: int, method: str | None) -> float:
        if method is None:
            return Z * (p * (1 - p) / n) ** 0.5
        ends = stats.binomtest(round(p * n), n).proportion_ci(0.95, method)
        return (ends.high - ends.low) / 2

    sizes = range(1000, 2000)
    needed = [next(n for n in sizes if half(n, method) <= 0.02) for method in (None, "wilson", "exact")]
    demand(n >= min(needed) - 1, f"With {n:g} hands the interval reaches {100 * half(int(n), None):.2f} points.")
    demand(n <= 1.015 * max(needed), f"{n:g} are enough, and more than an accuracy near {p:.1%} needs.")
    qwen = PAPER["stages"]["qwen-2.5-7b"]["ood"]
    healed = qwen["rl"] - qwen["sft_moderate"]
    approve(
        f"the paper has 234 hands: ±{100 * half(234, None):.1f} points; its healing of Qwen is {healed:.1f} points."
    )


@check
def best_of_many(answer: float) -> None:
    """How far, in points, the best of 15 checkpoints lies above what all truly have: 30 %, each on 234 other hands."""
    points = as_number(answer)
    best = np.random.default_rng(6).binomial(234, 0.3, (20_000, 15)).max(1)
    true, one = 100 * (best.mean() / 234 - 0.3), 100 * (0.3 * 0.7 / 234) ** 0.5
    demand(points > 1, "More: 15 noisy numbers, and one takes the largest. In points, such as 2.5.")
    demand(
        abs(points - true) < 0.35, f"The standard error of ONE accuracy is {one:.1f} points; draw 15, take the best."
    )
    approve(f"{true:.1f} points out of nothing: C1 picks the peak on half of the hands and measures it on the others.")


Accuracies = np.ndarray  # of each seed, after all is done


@check
def c4_rules(
    paper: Callable[[Accuracies, Accuracies, Accuracies], str],
    controlled: Callable[[Accuracies, Accuracies, Accuracies, dict[str, Accuracies]], str],
) -> None:
    """Two rules on OOD accuracies a seed: paper(start, rl, peak) and controlled(start, rl, peak, controls) -> verdict.

    `supported`, `not supported` or `inconclusive`, at 95 %, paired within a seed. Made-up runs whose verdicts are
    clear; then both on the sweep.
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
        ("RL is 1 point up, in noise of more than that", 0.01, (0.0, 0.0), 4, {open_}, {open_}),
        ("RL loses 5 points, both controls lose 10", -0.05, (-0.1, -0.1), 1, {no}, {no}),
        ("RL ends 10 points above the peak, the controls gain 2", 0.35, (0.02, 0.02), 1, {no}, {no}),
    ]
    for case, gain, gains, size, by_paper, by_controls in cases:
        rl = start + gain + size * noise
        others = zip(("sft_continued", "rejection_sampling"), gains, strict=True)
        controls = {name: start + g + size * np.roll(noise, 3) for name, g in others}
        for which, found, allowed in (
            ("paper's", call(paper, start, rl, peak), by_paper),
            ("controlled", call(controlled, start, rl, peak, controls), by_controls),
        ):
            demand(found in VERDICTS, f"A verdict is one of {', '.join(VERDICTS)}, not {found!r}.")
            demand(found in allowed, f"A made-up run in which {case}: your {which} rule says {found!r}.")
    rows = healing.wide(Sweep().rows("confirm"), "ood").loc[("one-try", 100)]
    ends = [rows[c].to_numpy() for c in ("start", "rl", "peak")]
    verdicts = paper(*ends), controlled(*ends, {c: rows[c].to_numpy() for c in healing.TRAINED})
    approve(
        f"on {len(rows)} seeds of the sweep, from step 100, the paper's rule says {verdicts[0]!r}, yours with "
        f"controls {verdicts[1]!r}: the same numbers, another question."
    )


@check
def control_against_c4(design: dict[str, Any]) -> None:
    """A comparison in the committed sweep that could refute C4: a dictionary of

    condition, from_step, arm, metric: which rows; margin: the smallest healing worth the name, as an accuracy;
    refutes(low, high) -> bool: whether an interval of OOD(RL) - OOD(arm) refutes that RL heals more than the arm.
    """
    demand(isinstance(design, dict), UNFILLED)
    names = ("condition", "from_step", "arm", "metric", "margin", "refutes")
    lacking = [n for n in names if n not in design or design[n] is ...]
    demand(len(lacking) < len(names), UNFILLED)
    demand(not lacking, f"The design does not say: {', '.join(lacking)}.")
    condition, start, arm, metric, margin, refutes = (design[n] for n in names)
    sweep = Sweep()
    table, seeds = sweep.table(), sweep.seeds("confirm")
    metrics = sorted(m for m in table["metric"].unique() if m.startswith("accuracy"))
    demand(metric in metrics, f"C4 is about OOD accuracy; the table has {', '.join(metrics)}.")
    wide = healing.wide(table, "ood", metric)
    starts = sorted({(r, int(t)) for r, t, _ in wide.index})
    demand((condition, start) in starts, f"The sweep has no RL there; it has {starts}.")
    mine = wide.loc[(condition, start)].dropna(axis=1, how="all")
    demand(arm not in ("rl", "start", "peak"), "That is no control: it does not train, or it is RL itself.")
    demand(arm in mine, f"{condition} from {start} has no such arm; it has {', '.join(mine.columns)}.")
    demand(arm != "interpolation_peak", "That arm knows where the OOD peak was: it has seen OOD hands, RL has not.")
    fair = (*healing.TRAINED, "random_reward", "format_reward")
    demand(arm in fair, "That arm makes no updates: if it differs, is it what was learnt, or that anything was?")
    demand(
        set(seeds) & set(mine.index),
        f"Run on seed {', '.join(map(str, mine.index))} alone, where settings were sought: no interval, no test.",
    )
    found = healing.effects(table[(table["condition"] == condition)], metric, seeds)
    effect = next(e for e in found if e.start == start)
    lost = float((mine["peak"] - mine["start"]).loc[mine.index.isin(seeds)].mean())
    demand(lost > healing.MARGIN, "Nothing was lost at that start, so that nothing could be healed.")
    demand(effect.learnt.low > 0, "RL's own return did not rise there: RL that learns nothing was not put to the test.")
    demand(arm not in effect.behind, "That arm learns less on ID hands than RL: forgetting less is then no feat.")
    margin, gap = as_number(margin), effect.against[arm]
    half = (gap.high - gap.low) / 2
    demand(half <= margin, f"This interval reaches {100 * half:.1f} points to either side: too wide for your margin.")
    demand(
        margin <= lost / 4, f"{100 * lost:.0f} points were lost; a margin of {100 * margin:.0f} overlooks a healing."
    )
    for low, high, holds in (  # in margins
        (-4, -2, True), (2, 4, False), (0.5, 6, False), (-3, 5, False), (-6, 4, False), (-10, 5, False),
        (-1, 1.2, False),
    ):  # fmt: skip
        said = bool(call(refutes, low * margin, high * margin))
        why = {True: "wholly below 0", False: "that leaves room for a healing"}[holds]
        demand(said == holds, f"Your rule says {said} of [{low * margin:+.3f}, {high * margin:+.3f}], {why}.")
    verdict = "refutes" if refutes(gap.low, gap.high) else "does not refute"
    approve(
        f"OOD(RL) - OOD({arm}) is {100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}] points on "
        f"{gap.n} seeds, {100 * lost:.0f} were lost. By your rule that {verdict} C4 here; it could have done either."
    )
