"""Routes on a grid, the player who walks them, and the draws of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from oodlib.tasks.base import check_choice

DIRECTIONS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
TURNS = {"slightly right": 1, "right": 2, "slightly left": -1, "left": -2}  # in eighths of a circle, clockwise
CROSSING, NOTHING = "crossing", "nothing"
LANDMARKS = ("bank", "cafe", "church", "hotel", "museum", "park", "school", "station")
SPACES = {"absolute": DIRECTIONS, "relative": tuple(TURNS)}  # which words an action names
LEGS = (2, 3)
BLOCKS = (1, 2, 3)  # steps forward on a leg
DISTRACTED = 0.3  # how often a place on the way shows something that does not matter


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


def draw_route(rng: np.random.Generator, counts: tuple[int, ...] = LEGS, blocks: tuple[int, ...] = BLOCKS) -> Route:
    """A route on directions that comes to no place twice; `counts` and `blocks`: the numbers of its legs, and of the
    steps on one, from which is drawn."""
    while True:
        heading = start = int(rng.integers(8))
        legs = []
        n = int(rng.choice(counts))
        for number in range(n):
            heading = (heading + int(rng.choice(list(TURNS.values())))) % 8
            end = CROSSING if number + 1 < n and rng.random() < 0.5 else str(rng.choice(LANDMARKS))
            others = [sight for sight in (CROSSING, *LANDMARKS) if sight != end]
            before = [
                str(rng.choice(others)) if rng.random() < DISTRACTED else NOTHING
                for _ in range(int(rng.choice(blocks)) - 1)
            ]
            legs.append(Leg(heading, (*before, end)))
        if len(_places(legs)) == sum(len(leg.sights) for leg in legs) and (0, 0) not in _places(legs):
            return Route(start, tuple(legs))


def draw_routes(rng: np.random.Generator, n: int) -> list[Route]:
    """`n` distinct routes."""
    found: dict[Route, None] = {}
    while len(found) < n:
        found[draw_route(rng)] = None
    return list(found)


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
