"""The checks of the exercises on reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np

from oodlib.exercises.checking import UNFILLED, approve, as_number, call, check, demand
from oodlib.run import Run


@check
def grpo_advantages(function: Callable[[np.ndarray], np.ndarray], run: Run) -> None:
    """The advantages that RL had: rewards [groups, answers] -> [groups, answers]; against those that were recorded."""
    rewards, recorded = (_groups(run, name) for name in ("reward", "advantage"))
    found = np.asarray(call(function, rewards), dtype=float)
    demand(found.shape == rewards.shape, f"Shape {found.shape} where the rewards have {rewards.shape}.")
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
    found = np.asarray(call(function, rewards), dtype=float)
    demand(found.shape == rewards.shape, f"Shape {found.shape} where the rewards have {rewards.shape}.")
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
        rewards = _groups(run, "reward", start)
        true, found = float((np.ptp(rewards, axis=1) == 0).mean()), float(shares[start])
        demand(0 <= found <= 1, "Shares are from 0 to 1.")
        demand(
            abs(found - true) < 0.002,
            f"Not so from step {start}. A group is one hand in one update: {len(rewards)} of them from there.",
        )
    solved = rollouts.assign(right=rollouts["outcome"] == "correct").groupby("from_step")["right"].mean()
    approve(
        "; ".join(f"from step {s} {shares[s]:.0%}, with {solved[s]:.0%} of the answers right" for s in starts) + "."
    )


@check
def group_size(answer: int) -> None:
    """How many answers a hand, so that at 5 % success at least half of the groups hold right and wrong ones."""
    n = as_number(answer)
    needed = next(i for i in count(1) if 1 - 0.95**i - 0.05**i >= 0.5)
    demand(n == int(n) and n > 0, "A whole number of answers is asked for.")
    held = 1 - 0.95**n - 0.05**n
    demand(held >= 0.5, f"With {n:g} answers {held:.0%} of the groups hold both.")
    demand(n <= needed, f"Enough, but one answer fewer would do: {1 - 0.95 ** (n - 1) - 0.05 ** (n - 1):.0%} do then.")
    approve(f"with {needed} answers {held:.0%} of the groups hold both; with 8, as in preset tiny, {1 - 0.95**8:.0%}.")


def _groups(run: Run, column: str, start: int | None = None) -> np.ndarray:
    """A column of RL's samples as [groups, answers], in the order in which they were made; of one start, or all."""
    played = run.table("rollouts", "rl")
    played = played if start is None else played[played["from_step"] == start]
    return played[column].to_numpy(float).reshape(-1, run.config.rl.samples)
