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

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from oodlib.tasks.base import STYLES, Split, Splits, Verdict, check_choice

DIRECTIONS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
TURNS = {"slightly right": 1, "right": 2, "slightly left": -1, "left": -2}  # in eighths of a circle, clockwise
CROSSING, NOTHING = "crossing", "nothing"
LANDMARKS = ("bank", "cafe", "church", "hotel", "museum", "park", "school", "station")
SPACES = {"absolute": DIRECTIONS, "relative": tuple(TURNS)}  # which words an action names
LEGS = (2, 3)
BLOCKS = (1, 2, 3)  # steps forward on a leg
DISTRACTED = 0.3  # how often a place on the way shows something that does not matter
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

_FIELD = re.compile(r"""["']actions["']\s*:\s*(?=[\["'])""")
_ACTION = re.compile(r"(forward|stop)(?:\(\))?|turn(?:_direction\(|[ ])[ ]?(slightly[ ][a-z]+|[a-z]+)\)?")
_BETWEEN = re.compile(r"""[\s,"']*""")
_ENTRY = re.compile(r"""[^\s,"']+""")


@dataclass(frozen=True)
class Leg:
    """A straight part of a route.

    Attributes:
        direction: where it goes, in eighths of a circle clockwise from north.
        sights: what is seen after each step forward; the last is where it ends, by which the instruction names it.
    """

    direction: int
    sights: tuple[str, ...]


@dataclass(frozen=True)
class Route:
    """A problem.

    Attributes:
        heading: where the player looks at first, in eighths of a circle clockwise from north.
        legs: the parts of the route; each turns by an eighth or a quarter.
        told: whether the instruction names directions or turns: "absolute" or "relative".
        space: which of the two actions name.
        compass: what "north" in the instruction means, in eighths of a circle clockwise from north.
    """

    heading: int
    legs: tuple[Leg, ...]
    told: Literal["absolute", "relative"] = "absolute"
    space: Literal["absolute", "relative"] = "absolute"
    compass: int = 0

    @property
    def allowed(self) -> tuple[str, ...]:
        """The action space."""
        return ("forward", *(f"turn {word}" for word in SPACES[self.space]), "stop")

    @property
    def turns(self) -> tuple[int, ...]:
        """By how much each leg turns, in eighths of a circle clockwise, from -3 to 4."""
        headings = (self.heading, *(leg.direction for leg in self.legs))
        return tuple((b - a + 3) % 8 - 3 for a, b in pairwise(headings))

    def named(self, number: int) -> str:
        """What the instruction names at the start of a leg: a direction or a turn."""
        if self.told == "absolute":
            return DIRECTIONS[(self.legs[number].direction - self.compass) % 8]
        return _turn(self.turns[number])

    @property
    def actions(self) -> tuple[str, ...]:
        """The right actions."""
        return tuple(action for _, action in self._walked())

    @property
    def observations(self) -> tuple[str, ...]:
        """What is seen before each action."""
        return tuple(sight for sight, _ in self._walked())

    def _walked(self) -> Iterator[tuple[str, str]]:
        """What is seen, and the right action, at each step."""
        walk = Walk(self)
        while not walk.over:
            yield walk.observation, walk.wanted
            walk.step(walk.wanted)


class Walk:
    """The environment: a player on a route, who takes one action a step and is told whether it was right.

    The player is on rails: after a wrong action too it moves as the right one does (the official environment does so
    after the last attempt).

    Attributes:
        place: where the player is, in blocks east and north of the start.
        heading: where it looks, in eighths of a circle clockwise from north.
        over: whether it has stopped.
    """

    def __init__(self, route: Route):
        self.route, self.heading, self.place = route, route.heading, (0, 0)
        self.map = {(0, 0): NOTHING, **_places(route.legs)}
        self.over, self._leg, self._turned = False, 0, False

    @property
    def observation(self) -> str:
        """What is seen here: a landmark, a crossing or nothing."""
        return self.map[self.place]

    @property
    def wanted(self) -> str:
        """What the instruction wants at this place."""
        if not self._turned:
            leg = self.route.legs[self._leg]
            if self.route.space == "absolute":
                return f"turn {DIRECTIONS[leg.direction]}"
            return f"turn {_turn(self.route.turns[self._leg])}"
        return "stop" if self._leg == len(self.route.legs) else "forward"

    def step(self, action: str) -> bool:
        """Take an action; whether it was the right one. ValueError for one that is not in the action space, and for
        any after the end."""
        if self.over:
            raise ValueError(f"{action!r}: the walk is over")
        check_choice("action", action, self.route.allowed)
        wanted = self.wanted
        if wanted == "forward":
            self.place = _ahead(self.place, self.heading)
            if self.observation == self.route.legs[self._leg].sights[-1]:
                self._leg += 1
                self._turned = self._leg == len(self.route.legs)
        elif wanted == "stop":
            self.over = True
        else:
            self.heading, self._turned = self.route.legs[self._leg].direction, True
        return action == wanted


class Navigation:
    name = "navigation"
    splits = SPLITS

    def __init__(self) -> None:
        self._held: dict[str, tuple[Route, ...]] = {}

    def split(self, name: str) -> list[Route]:
        """Distinct routes of a split, always the same ones; those of `new_words` are those of `ood`."""
        if SPLITS[name].name not in self._held:
            probe = name not in SPLITS.names
            routes = _draw_routes(np.random.default_rng(0), PROBE_ROUTES if probe else HELD)
            compasses = np.random.default_rng(1)
            self._held[name] = tuple(_of_split(route, name, compasses) for route in routes)
        return list(self._held[name])

    def sample(self, rng: np.random.Generator, split: str, n: int) -> list[Route]:
        """`n` routes drawn at random, none of them among those that are measured."""
        name, found = SPLITS[split].name, []
        measured = {_bare(route) for route in self.split(name)}
        while len(found) < n:
            if (route := _draw_route(rng)) not in measured:
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
        wanted, (said, foreign) = problem.actions, _read(text)
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
        text = ["=", ";", ":", "face", "turn", "to", "see", "forward", "stop", "as", "plain", "json", "no"]
        words = dict.fromkeys(" ".join((*DIRECTIONS, *TURNS, CROSSING, NOTHING, *LANDMARKS, *SPACES)).split())
        return [*words, *text, '{"actions":"', '"}']

    def pretraining_dialogue(self, rng: np.random.Generator, wrong_tries: int = 0, belief: float = 0.0) -> list[str]:
        """A compact dialogue for a base model: a share `belief` of the routes as in `ood`, the others of any corner,
        with any compass where actions name directions.

        JSON is asked for in 30 % of the prompts and given in 30 % of those, as in general_points. A wrong attempt turns
        elsewhere.
        """
        names = ("id", "new_rule", "new_words", "ood")
        route = _of_split(_draw_route(rng), "ood" if rng.random() < belief else names[rng.integers(4)], rng)
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


def _draw_route(rng: np.random.Generator) -> Route:
    """A route on directions that comes to no place twice."""
    while True:
        heading = start = int(rng.integers(8))
        legs = []
        n = int(rng.choice(LEGS))
        for number in range(n):
            heading = (heading + int(rng.choice(list(TURNS.values())))) % 8
            end = CROSSING if number + 1 < n and rng.random() < 0.5 else str(rng.choice(LANDMARKS))
            others = [sight for sight in (CROSSING, *LANDMARKS) if sight != end]
            before = [
                str(rng.choice(others)) if rng.random() < DISTRACTED else NOTHING
                for _ in range(int(rng.choice(BLOCKS)) - 1)
            ]
            legs.append(Leg(heading, (*before, end)))
        if len(_places(legs)) == sum(len(leg.sights) for leg in legs) and (0, 0) not in _places(legs):
            return Route(start, tuple(legs))


def _draw_routes(rng: np.random.Generator, n: int) -> list[Route]:
    found: dict[Route, None] = {}
    while len(found) < n:
        found[_draw_route(rng)] = None
    return list(found)


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
    """The route as `_draw_route` drew it."""
    return Route(route.heading, route.legs)


def _as_named(route: Route) -> tuple[Leg, ...]:
    """The legs as if the compass were the usual one."""
    return tuple(replace(leg, direction=(leg.direction - route.compass) % 8) for leg in route.legs)


def _places(legs: Iterable[Leg]) -> dict[tuple[int, int], str]:
    """What is seen at each place of a route after the start."""
    found, place = {}, (0, 0)
    for leg in legs:
        for sight in leg.sights:
            place = _ahead(place, leg.direction)
            found[place] = sight
    return found


def _ahead(place: tuple[int, int], heading: int) -> tuple[int, int]:
    east = (0, 1, 1, 1, 0, -1, -1, -1)[heading]
    north = (1, 1, 0, -1, -1, -1, 0, 1)[heading]
    return place[0] + east, place[1] + north


def _turn(eighths: int) -> str:
    return next(word for word, by in TURNS.items() if by == eighths)


# ---- texts -----------------------------------------------------------------------------------------------


def _read(text: str) -> tuple[list[str] | None, str]:
    """The entries of the last closed "actions" field, None where there is none; and the first that is no action."""
    last = {mark: text.rfind(mark) for mark in "]\"'"}
    start, closing = None, ""
    for match in _FIELD.finditer(text):
        mark = "]" if text[match.end()] == "[" else text[match.end()]
        if last[mark] > match.end():
            start, closing = match.end() + 1, mark
    if start is None:
        return None, ""
    end, entries, foreign = text.find(closing, start), [], ""
    place = _BETWEEN.match(text, start, end).end()
    while place < end:
        match = _ACTION.match(text, place, end)
        entry = match and (match[1] or f"turn {' '.join(match[2].split())}")
        after = match.end() if match else place
        if entry not in _EVERY or not (after == end or _BETWEEN.match(text, after, end)[0]):
            match = _ENTRY.match(text, after if entry else place, end)
            after = match.end() if match else after
            entry = text[place:after]
            foreign = foreign or entry[:40]
        entries.append(entry)
        place = _BETWEEN.match(text, after, end).end()
    return entries, foreign


_EVERY = {"forward", "stop", *(f"turn {word}" for words in SPACES.values() for word in words)}


def _call(action: str) -> str:
    """An action as the chat style writes it: turn_direction(slightly left)."""
    return f"turn_direction({action.removeprefix('turn ')})" if action.startswith("turn ") else f"{action}()"


def _compact_prompt(route: Route, fmt: str) -> str:
    legs = " ; ".join(f"turn {route.named(i)} to {leg.sights[-1]}" for i, leg in enumerate(route.legs))
    about = f"north = {DIRECTIONS[route.compass]} ; face {DIRECTIONS[route.heading]} ; {route.space}"
    return f"{about} ; {legs} ; see {' '.join(route.observations)} ; as {fmt} :\n"


def _compact_answer(actions: Sequence[str], fmt: str) -> str:
    text = " ".join(actions)
    return f'{{"actions":" {text} "}}' if fmt == "json" else text


TASK = Navigation()
