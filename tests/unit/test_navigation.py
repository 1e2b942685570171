"""Navigation, against a second player that knows only the prompt, and a walk on a grid."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodlib.tasks import get_task
from oodlib.tasks.navigation import HELD, PROBE_ROUTES
from oodlib.tasks.navigation.routes import DIRECTIONS, SPACES, TURNS, Leg, Route, Walk

TASK = get_task("navigation")
CORNERS = TASK.splits.names
STEP = {"north": 1j, "east": 1, "south": -1j, "west": -1}
STEP |= {a + b: STEP[a] + STEP[b] for a in ("north", "south") for b in ("east", "west")}
ANGLES = {"left": 90, "right": -90, "slightly left": 45, "slightly right": -45}


def angle(word):
    return np.angle(STEP[word], deg=True)


def play_by_prompt(prompt):
    """The right actions, found from the compact prompt alone, with angles of complex numbers."""
    compass, space, *legs, seen, _ = (part.strip() for part in prompt.split(" ; "))
    turned = angle(compass.split(" = ")[1]) - angle("north")
    plan = [re.fullmatch(r"face (\w+) turn_(\w+) to (\w+)", leg).groups() for leg in legs]
    heading, sights, actions = angle(plan[0][0]), seen.split()[1:], []
    for facing, word, until in plan:
        assert abs((angle(facing) - heading + 180) % 360 - 180) < 1
        word = word.replace("_", " ")
        to = heading + ANGLES[word] if word in ANGLES else angle(word) + turned
        by = (to - heading + 180) % 360 - 180
        names = ANGLES if space == "relative" else {d: angle(d) for d in DIRECTIONS}
        goal = by if space == "relative" else to
        actions.append("turn " + next(name for name, a in names.items() if abs((a - goal + 180) % 360 - 180) < 1))
        heading = to
        sights.pop(0)
        while True:
            actions.append("forward")
            sights.pop(0)
            if sights[0] == until:
                break
    assert len(sights) == 1
    return [*actions, "stop"]


@pytest.mark.parametrize("split", CORNERS)
def test_a_player_who_reads_only_the_prompt_finds_the_right_actions(split):
    rng = np.random.default_rng(0)
    for route in [*TASK.split(split)[:100], *TASK.sample(rng, split, 200)]:
        found = play_by_prompt(TASK.prompt(route, "compact"))
        assert tuple(found) == route.actions
        assert TASK.verify(route, '{"actions":" ' + " ".join(found) + ' "}').outcome == "correct"


def test_the_walk_is_a_walk_on_a_grid():
    for route in TASK.sample(np.random.default_rng(1), "id", 200):
        walk, place, city = Walk(route), 0, {}
        for action, sight in zip(route.actions, route.observations, strict=True):
            assert walk.observation == sight
            assert city.setdefault(place, sight) == sight, "a place looks the same when it is seen again"
            if action.startswith("turn"):
                heading = STEP[action.removeprefix("turn ")]
            place += heading if action == "forward" else 0
            assert walk.step(action)
            assert complex(*walk.place) == place
        assert walk.over and DIRECTIONS[walk.heading] == next(d for d in DIRECTIONS if STEP[d] == heading)


@pytest.mark.parametrize("split", CORNERS)
def test_the_corners_are_what_they_say(split):
    routes = TASK.split(split)
    assert len({TASK.label(route) for route in routes}) == len(routes) == HELD
    new = {f"turn {word}" for word in TURNS}
    for route in routes:
        kept = route.named(0) in route.actions[0].split("turn ")
        assert kept == (split in ("id", "new_words"))
        assert set(route.actions) & new if "words" in TASK.splits[split].changes else not set(route.actions) & new


def test_new_words_and_ood_are_the_same_routes_with_the_same_actions():
    for one, other in zip(TASK.split("new_words"), TASK.split("ood"), strict=True):
        assert one.actions == other.actions and one.legs == other.legs and one.told != other.told


def test_no_measured_route_is_dealt():
    measured = {(route.heading, route.legs) for route in TASK.split("id")}
    assert not measured & {(r.heading, r.legs) for r in TASK.sample(np.random.default_rng(0), "id", 2000)}


def test_probes_turn_the_compass():
    for probe in TASK.splits.probes:
        routes = TASK.split(probe.name)
        assert len(routes) == PROBE_ROUTES and {45 * route.compass for route in routes} == {probe.value}


@pytest.mark.parametrize("style", ["compact", "chat"])
@pytest.mark.parametrize("split", CORNERS)
def test_right_answers_are_right_and_every_changed_step_is_found(split, style):
    rng = np.random.default_rng(2)
    for route in TASK.sample(rng, split, 20):
        said = TASK.answer(route, style, rng)
        said = said if style == "compact" else said[-1]["content"]
        verdict = TASK.verify(route, said)
        n = len(route.actions)
        assert verdict.outcome == "correct" and verdict.reward == n and verdict.measures["right_steps"] == 1
        for place in range(n):
            others = [action for action in route.allowed if action != route.actions[place]]
            actions = [*route.actions[:place], others[rng.integers(len(others))], *route.actions[place + 1 :]]
            verdict = TASK.verify(route, answer(actions))
            assert verdict.outcome == "wrong_value" and verdict.reward == n - 2
            assert f"Action {place + 1} is wrong" in verdict.message
            assert verdict.measures["right_steps"] == pytest.approx((n - 1) / n)


def answer(actions):
    return '{"actions": [' + ", ".join(f'"{a}"' for a in actions) + "]}"


CALLS = "{'actions': ['turn_direction(right)', 'forward()', 'forward()', 'turn_direction(slightly left)', " + (
    "'forward()', 'stop()']}"
)
ROUTE = Route(0, (Leg(2, ("nothing", "crossing")), Leg(1, ("bank",))), space="relative")  # right, slightly left


@pytest.mark.parametrize(
    ("text", "outcome", "reward"),
    [
        ('{"actions":" turn right forward forward turn slightly left forward stop "}', "correct", 6),
        ('{"actions":" turn_right forward forward turn_slightly_left forward stop "}', "correct", 6),
        (CALLS, "correct", 6),
        ('{"actions": []} {"actions":" turn right forward forward turn slightly left forward stop "}', "correct", 6),
        ('{"actions":" turn east forward forward turn northeast forward stop "}', "wrong_numbers", 2),
        ('{"actions":" turn right forward forward turn slightly left forward "}', "wrong_numbers", 4),
        ('{"actions":" turn right forward forward turn slightly left forward stop stop "}', "wrong_numbers", 5),
        ('{"actions":" turn left forward forward turn slightly left forward stop "}', "wrong_value", 4),
        ('{"actions":" turn right fly "}', "illegal", -4),
        ('{"actions":" forwardstop "}', "illegal", -6),
        ('{"actions":" turn slightly forward "}', "illegal", -6),
        ('{"actions": ["turn right", "fly()", "forward", "turn slightly left", "forward", "stop"]}', "illegal", 4),
        (f'{CALLS} and {{"actions": [', "correct", 6),
        ('{"actions": []}', "wrong_numbers", -6),
        ('{"actions": [', "malformed", -6),
        ("turn right forward", "malformed", -6),
        ("", "malformed", -6),
        ('{"actions": [' * 50_000, "malformed", -6),
        ('{"actions":"' + " forward" * 50_000 + '"}', "wrong_numbers", None),
        ('{"actions":"' + " " * 200_000, "malformed", -6),
    ],
)
def test_an_answer_is_judged_step_by_step(text, outcome, reward):
    verdict = TASK.verify(ROUTE, text)
    assert verdict.outcome == outcome and reward in (None, verdict.reward)


def test_clinging_to_the_rule_of_sft_is_seen():
    rng = np.random.default_rng(3)
    for route in TASK.sample(rng, "ood", 20):
        old = [f"turn {route.named(i)}" for i in range(len(route.legs))]
        actions = [old.pop(0) if action.startswith("turn") else action for action in route.actions]
        assert TASK.verify(route, answer(actions)).measures["old_rule"]
        assert not TASK.verify(route, answer(route.actions)).measures["old_rule"]
    for route in TASK.sample(rng, "new_rule", 20):
        old = [f"turn {route.named(i)}" for i in range(len(route.legs))]
        actions = [old.pop(0) if action.startswith("turn") else action for action in route.actions]
        verdict = TASK.verify(route, answer(actions))
        assert verdict.measures["old_rule"] and verdict.outcome == "wrong_value"


def test_the_environment_keeps_the_player_on_rails_and_refuses_what_is_no_action():
    walk = Walk(ROUTE)
    with pytest.raises(
        ValueError, match="unknown action 'turn north'; allowed: forward, turn slightly right, turn right"
    ):
        walk.step("turn north")
    assert not walk.step("forward") and walk.heading == 2 and walk.place == (0, 0)
    assert [walk.step(a) for a in ("forward", "forward", "turn slightly left", "stop", "stop")] == [1, 1, 1, 0, 1]
    with pytest.raises(ValueError, match="'stop': the walk is over"):
        walk.step("stop")


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown split 'far'; allowed: id, new_rule, new_words, ood"):
        TASK.sample(np.random.default_rng(0), "far", 1)


def test_turns_are_those_that_the_relative_space_can_name():
    for route in TASK.sample(np.random.default_rng(4), "ood", 300):
        assert set(route.turns) <= set(TURNS.values())
        headings = (route.heading, *(leg.direction for leg in route.legs))
        assert all((b - a - t) % 8 == 0 for (a, b), t in zip(pairwise(headings), route.turns, strict=True))


def test_the_compact_prompt_says_before_each_leg_where_the_player_faces():
    rng = np.random.default_rng(6)
    for route in (route for split in CORNERS for route in TASK.sample(rng, split, 20)):
        facing = [part.split()[:2] for part in TASK.prompt(route, "compact").split(" ; ")[2:-2]]
        assert facing == [["face", DIRECTIONS[h]] for h in (route.heading, *(g.direction for g in route.legs[:-1]))]


def test_a_base_begins_with_routes_of_one_leg():
    def legs(done):
        rng = np.random.default_rng(7)
        return {TASK.pretraining_dialogue(rng, 0, 0.0, done)[0].count("face") for _ in range(50)}

    assert (legs(0.0), legs(0.25), legs(0.5)) == ({1}, {1, 2}, {2, 3})


def test_every_word_of_the_compact_style_is_in_the_vocabulary():
    rng, known = np.random.default_rng(5), set(TASK.words())
    for split in CORNERS:
        for route in TASK.sample(rng, split, 50):
            assert set((TASK.prompt(route, "compact") + TASK.answer(route, "compact", rng)).split()) <= known
    for wrong in range(3):
        dialogue = TASK.pretraining_dialogue(rng, wrong, 0.5)
        assert set(" ".join(dialogue).split()) <= known and len(dialogue) == 2 + 2 * wrong


def test_the_chat_prompt_names_the_rule_the_actions_and_every_observation():
    for split in CORNERS:
        route = TASK.split(split)[0]
        text = TASK.prompt(route, "chat")[0]["content"]
        assert all(f"O_{i}: {sight}" in text for i, sight in enumerate(route.observations, 1))
        assert all(word in text for word in SPACES[route.space])
        assert f"north means {DIRECTIONS[route.compass]}" in text
        assert all(route.named(i) in text for i in range(len(route.legs)))


PIECES = [*"\"'[](){}:, ;", "actions", "forward", "turn", "_direction(", "left", "stop", "bank"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_text_is_an_error(text):
    verdict = TASK.verify(ROUTE, f'{{"actions": {text}')
    assert verdict.outcome in ("illegal", "malformed", "wrong_numbers", "wrong_value", "correct")
    assert 0 <= verdict.measures["right_steps"] <= 1 and -len(text) - 7 <= verdict.reward <= 6
