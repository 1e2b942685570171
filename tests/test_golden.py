"""The golden run: numbers that change unmeant are caught (see golden/measure.py)."""

import json

import pytest
from golden.measure import FILE, measure


def flat(value, name=""):
    if isinstance(value, dict):
        return {k: v for key, one in value.items() for k, v in flat(one, f"{name} / {key}").items()}
    if isinstance(value, list):
        return {k: v for i, one in enumerate(value) for k, v in flat(one, f"{name} [{i}]").items()}
    return {name: value}


def test_the_golden_run_comes_out_as_it_was_committed():
    wanted, got = flat(json.loads(FILE.read_text(encoding="utf-8"))), flat(measure())
    assert set(wanted) == set(got)
    for name, value in wanted.items():
        assert got[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-6)), name
