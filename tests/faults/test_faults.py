"""The short form of every row of the campaign; see campaign.py for the long one."""

import json
import os
from importlib import import_module
from types import SimpleNamespace

import campaign
import pytest

if not hasattr(os, "fork"):
    pytest.skip("the rows need fork", allow_module_level=True)


@pytest.mark.parametrize(
    ("row", "cases"),
    [
        ("answers", 1),
        ("files", 25),
        ("settings", 80),
        ("commands", 30),
        ("checkpoints", 3),
    ],
)
def test_what_is_hostile_is_judged_right_or_refused_in_one_line(row, cases):
    case = getattr(import_module(campaign.ROWS[row][0]), row)
    faults = [(what, fault) for n in range(cases) for what, fault in [case(0, n, 5000)] if fault]
    assert not faults, f"{len(faults)}: {faults[:3]}"


@pytest.mark.parametrize(("row", "number"), [("kill", 4), ("disk", 1), ("crowd", 0)])
def test_a_run_that_is_disturbed_ends_as_if_it_had_not_been(row, number):
    what, fault = getattr(import_module("running"), row)(0, number, 1)
    assert not fault, f"{what}: {fault}"


@pytest.mark.parametrize("number", [1, 5])
def test_a_command_works_where_nothing_is_as_usual(number):
    what, fault = import_module("surroundings").surroundings(0, number, 1)
    assert not fault, f"{what}: {fault}"


def test_a_campaign_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    results, asked = tmp_path / "faults.jsonl", []

    def answers(seed, number, size):
        asked.append(number)
        return f"case {number}", "a fault" if number == 2 else None

    monkeypatch.setattr(campaign, "import_module", lambda name: SimpleNamespace(answers=answers))
    campaign.run("answers", 15_000, 1, results)
    assert [x["case"] for x in campaign.run("answers", 40_000, 1, results)] == [2]
    assert asked == [0, 1, 2, 3] and "| answers | 40,000 | 1 |" in campaign.table(results)
    assert len([json.loads(line) for line in results.read_text().splitlines()]) == 4
