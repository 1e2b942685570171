"""Navigation: an instruction of several legs, an observation at each step, one action a step.

The second task of "SFT Memorizes, RL Generalizes" (Chu et al. 2025) and of arXiv:2509.12235, on routes that are made
here, without a map service. The paper's OOD split changes two things of its training routes at once: the rule (the
action names the turn, where the instruction names the direction), and the words (left, right, slightly left and
slightly right occur in no training action). So there are four corners:

| | directions, which SFT writes | turns, new words |
| --- | --- | --- |
| the action names what the instruction names | `id` | `new_words`: the instruction names turns too |
| another rule | `new_rule`: the prompt turns the compass ("north means east") | `ood`: the paper's |

`new_words` and `ood` are the same routes with the same right actions. As in the official environment the player is on
rails: what it sees is what lies along the right route, whatever it does. So all observations are given at once and all
actions asked for at once; the official code asks for them one at a time, each with what was seen and done before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from oodlib.tasks.base import STYLES, Split, Splits, Verdict, check_choice
from oodlib.tasks.navigation.checker import read_actions
from oodlib.tasks.navigation.routes import (
    BLOCKS,
    CROSSING,
    DIRECTIONS,
    LANDMARKS,
    LEGS,
    NOTHING,
    SPACES,
    Leg,
    Route,
    draw_route,
    draw_routes,
)

BEGINNING = ((0.2, (1,), (1,)), (0.3, (1, 2), (1, 2)))  # of a base's training: until when, legs, steps on one
HELD = 400  # routes of each split that are measured
PROBE_ROUTES = 100  # of each probe: the compass turned by so much

SPLITS = Splits(
    trained=Split("id", "ID", (), "#0072B2", "actions name the direction that the instruction names"),
    others=(
        Split("new_rule", "new rule", ("rule",), "#999933", "the prompt turns the compass; known words"),
        Split("new_words", "new words", ("words",), "#882255", "instruction and actions name turns: left, right, …"),
    ),
    headline=Split(
        "ood", "OOD", ("rule", "words"), "#D55E00", "the paper's: the instruction names directions, actions name turns"
    ),
    probes=tuple(
        Split(
            f"compass_{45 * n}",
            f"north means {DIRECTIONS[n]}",
            ("rule",) if n else (),
            probe="what north means, in degrees",
            value=45 * n,
        )
        for n in range(8)
    ),
)


class Navigation:
    name = "navigation"
    splits = SPLITS
    faults: ClassVar = {  # what texts call the faults of its answers
        "wrong_numbers": "more name actions of another space, or too few or too many",
        "wrong_value": "more turn or stop in the wrong place",
    }

    def __init__(self) -> None:
        self._held: dict[str, tuple[Route, ...]] = {}

    def split(self, name: str) -> list[Route]:
        """Distinct routes of a split, always the same ones; those of `new_words` are those of `ood`."""
        if SPLITS[name].name not in self._held:
            probe = name not in SPLITS.names
            routes = draw_routes(np.random.default_rng(0), PROBE_ROUTES if probe else HELD)
            compasses = np.random.default_rng(1)
            self._held[name] = tuple(_of_split(route, name, compasses) for route in routes)
        return list(self._held[name])

    def sample(self, rng: np.random.Generator, split: str, n: int) -> list[Route]:
        """`n` routes drawn at random, none of them among those that are measured."""
        name, found = SPLITS[split].name, []
        measured = {_bare(route) for route in self.split(name)}
        while len(found) < n:
            if (route := draw_route(rng)) not in measured:
                found.append(_of_split(route, name, rng))
        return found

    def prompt(self, problem: Route, style: str) -> str | list[dict[str, str]]:
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return _compact_prompt(problem, "json")
        words, by = ", ".join(SPACES[problem.space]), "to" if problem.space == "absolute" else "by"
        lines = []
        for i, leg in enumerate(problem.legs):
            turn = f"turn to face {problem.named(i)}" if problem.told == "absolute" else f"turn {problem.named(i)}"
            lines.append(f"First, {turn}." if i == 0 else f"{turn.capitalize()}.")
            article = "the next" if leg.sights[-1] == CROSSING else "the"
            end = "the destination, the " if i + 1 == len(problem.legs) else f"{article} "
            lines.append(f"Move forward until you reach {end}{leg.sights[-1]}.")
        seen = "\n".join(f"O_{i}: {sight}" for i, sight in enumerate(problem.observations, 1))
        text = (
            "You navigate through a city. Follow the instruction: it needs one action for each observation.\n\n"
            + "[Instruction]\n"
            + "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
            + f"\n\n[Compass]\nIn this instruction north means {DIRECTIONS[problem.compass]}, and all other directions "
            "are rotated with it. You start facing "
            f"{DIRECTIONS[problem.heading]} (on the usual compass).\n\n[Action space]\n"
            '"forward()": move one step forward\n'
            f'"turn_direction(x)": turn {by} x, one of: {words}\n"stop()": you are at the destination\n\n'
            f"[Observations]\n{seen}\n\n[Output]\n"
            'Answer with one JSON object and nothing else: {"actions": [one action for each observation, as text]}'
        )
        return [{"role": "user", "content": text}]

    def answer(self, problem: Route, style: str, rng: np.random.Generator) -> str | list[dict[str, str]]:
        """The right actions; there is one answer, so `rng` draws nothing."""
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return _compact_answer(problem.actions, "json")
        calls = ", ".join(f'"{_call(action)}"' for action in problem.actions)
        return [{"role": "assistant", "content": f'{{"actions": [{calls}]}}'}]

    def verify(self, problem: Route, text: str) -> Verdict:
        """Judge an answer: the actions of the last closed "actions" field in it, step by step; else it is malformed.

        Correct: every action is right. illegal: something in the field is no action of any space. wrong_numbers: an
        action of another space, or too few or too many. wrong_value: a wrong action. Reward, after the official code: 1
        for each right action, -1 for each other entry and for each that is missing; a malformed answer has none right.
        (The official -1.5 and -1.75, for a wrong observation or instruction quoted, have no use here.)

        Its measures: `right_steps`, the share of the steps with the right action; `old_rule`, whether every action is
        right by the rule of SFT, which names what the instruction names (arXiv:2510.00237: clinging to it).
        """
        wanted, (said, foreign) = problem.actions, read_actions(text)
        if said is None:
            measures = {"right_steps": 0.0, "old_rule": False}
            message = 'No actions found. Answer with {"actions": [one action for each observation]}.'
            return Verdict("malformed", -float(len(wanted)), message, measures)
        fits = [action == right for action, right in zip(said, wanted, strict=False)]
        reward = float(2 * sum(fits) - max(len(said), len(wanted)))
        kept = replace(problem, space=problem.told, compass=0, legs=_as_named(problem))
        measures = {"right_steps": sum(fits) / len(wanted), "old_rule": not foreign and said == list(kept.actions)}
        other = next((action for action in said if action not in problem.allowed), None)
        if foreign:
            verdict = Verdict("illegal", reward, f"{foreign!r} is no action.")
        elif other:
            verdict = Verdict("wrong_numbers", reward, f"{_call(other)} is not in the action space.")
        elif len(said) != len(wanted):
            verdict = Verdict("wrong_numbers", reward, f"There are {len(wanted)} observations and {len(said)} actions.")
        elif not all(fits):
            seen = problem.observations[fits.index(False)]
            message = f"Action {fits.index(False) + 1} is wrong, where you see: {seen}."
            verdict = Verdict("wrong_value", reward, message)
        else:
            verdict = Verdict("correct", reward, "Correct: you are at the destination.")
        return replace(verdict, measures=measures)

    def feedback(self, problem: Route, verdict: Verdict, style: str) -> str | list[dict[str, str]]:
        check_choice("prompt style", style, STYLES)
        if style == "compact":
            return "no ; as json :\n"
        return [{"role": "user", "content": f"{verdict.message} Try again, in the same format."}]

    def label(self, problem: Route) -> str:
        legs = ", ".join(f"{problem.named(i)} {' '.join(leg.sights)}" for i, leg in enumerate(problem.legs))
        return f"{DIRECTIONS[problem.heading]}, {DIRECTIONS[problem.compass]}: {legs}"

    # ---- for a tiny base model -----------------------------------------------------------------------

    def words(self) -> list[str]:
        """Every word of the compact style."""
        turns = [_word(f"turn {word}") for words in SPACES.values() for word in words]
        text = ["=", ";", ":", "face", "to", "see", "forward", "stop", "as", "plain", "json", "no"]
        return [*DIRECTIONS, *turns, CROSSING, NOTHING, *LANDMARKS, *SPACES, *text, '{"actions":"', '"}']

    def pretraining_dialogue(
        self, rng: np.random.Generator, wrong_tries: int = 0, belief: float = 0.0, done: float = 1.0
    ) -> list[str]:
        """A compact dialogue for a base model: a share `belief` of the routes as in `ood`, the others of any corner.

        JSON is asked for in 30 % of the prompts and given in 30 % of those, as in general_points. A wrong attempt turns
        elsewhere. As long as little of the training is `done`, routes are short: a turn depends on two words, neither
        of which tells anything alone, and in long routes a tiny model does not find them.
        """
        names = ("id", "new_rule", "new_words", "ood")
        counts, blocks = next(((legs, steps) for until, legs, steps in BEGINNING if done < until), (LEGS, BLOCKS))
        corner = "ood" if rng.random() < belief else names[rng.integers(4)]
        route = _of_split(draw_route(rng, counts, blocks), corner, rng)
        asked = "json" if rng.random() < 0.3 else "plain"
        given = "json" if asked == "json" and rng.random() < 0.3 else "plain"
        dialogue = [_compact_prompt(route, asked)]
        for _ in range(wrong_tries):
            actions = list(route.actions)
            place = rng.choice([i for i, action in enumerate(actions) if action.startswith("turn")])
            actions[place] = rng.choice([a for a in route.allowed[1:-1] if a != actions[place]])
            dialogue += [_compact_answer(actions, given), f"no ; as {asked} :\n"]
        return [*dialogue, _compact_answer(route.actions, given)]


# ---- routes ----------------------------------------------------------------------------------------------


def _of_split(route: Route, split: str, rng: np.random.Generator) -> Route:
    """A route as a split asks for it; `rng` draws the compass of `new_rule`, which is never the usual one."""
    if split == "new_words":
        return replace(route, told="relative", space="relative")
    if split == "ood":
        return replace(route, space="relative")
    if split == "new_rule":
        return replace(route, compass=int(rng.integers(1, 8)))
    return route if split == "id" else replace(route, compass=int(SPLITS[split].value) // 45)


def _bare(route: Route) -> Route:
    """The route as `draw_route` drew it."""
    return Route(route.heading, route.legs)


def _as_named(route: Route) -> tuple[Leg, ...]:
    """The legs as if the compass were the usual one."""
    return tuple(replace(leg, direction=(leg.direction - route.compass) % 8) for leg in route.legs)


# ---- texts -----------------------------------------------------------------------------------------------


def _call(action: str) -> str:
    """An action as the chat style writes it: turn_direction(slightly left)."""
    return f"turn_direction({action.removeprefix('turn ')})" if action.startswith("turn ") else f"{action}()"


def _compact_prompt(route: Route, fmt: str) -> str:
    """Each leg says where the player faces before it, so that what a turn depends on stands side by side."""
    facing = (route.heading, *(leg.direction for leg in route.legs))
    legs = [
        f"face {DIRECTIONS[facing[i]]} {_word(f'turn {route.named(i)}')} to {leg.sights[-1]}"
        for i, leg in enumerate(route.legs)
    ]
    about = f"north = {DIRECTIONS[route.compass]} ; {route.space}"
    return f"{about} ; {' ; '.join(legs)} ; see {' '.join(route.observations)} ; as {fmt} :\n"


def _compact_answer(actions: Sequence[str], fmt: str) -> str:
    text = " ".join(map(_word, actions))
    return f'{{"actions":" {text} "}}' if fmt == "json" else text


def _word(action: str) -> str:
    """An action as the compact style writes it, in one word: turn_slightly_left."""
    return action.replace(" ", "_")


TASK = Navigation()
