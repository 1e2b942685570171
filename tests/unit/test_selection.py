"""Rules that choose a checkpoint, on paths whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from oodlib.analysis.selection import RULES, by_rule, choices, elbow, first_minimum, paths, regrets
from oodlib.io import COLUMNS
from oodlib.tasks import get_task

SPLITS = get_task("general_points").splits
STEPS = [0, 10, 40, 100]
PATH = pd.DataFrame(
    {
        "step": STEPS,
        "id_loss": [9.0, 2.0, 2.5, 1.0],
        "id_accuracy": [0.0, 0.4, 0.6, 0.5],
        "kl_from_base": [0.0, 5.0, 6.0, 7.0],
        "angle": [0.0, 0.1, 0.4, 0.5],
        "effective_rank": [0.0, 3.0, 9.0, 8.0],
        "ood": [0.0, 0.6, 0.5, 0.1],
    }
)
WANTED = {
    "last": 100,
    "lowest ID loss": 100,
    "first minimum of the ID loss": 10,
    "highest ID accuracy": 40,
    "10% of the steps": 10,
    "elbow of the KL from the base": 10,
    "elbow of the angle": 40,
    "highest effective rank": 40,
}


def test_each_rule_keeps_what_it_says():
    assert choices(PATH) == WANTED
    assert set(WANTED) == {rule.label for rule in RULES}
    assert choices(PATH.sample(frac=1, random_state=0)) == WANTED, "in any order"


def test_a_rule_without_its_columns_is_left_out():
    assert set(choices(PATH[["step"]])) == {"last", "10% of the steps"}
    assert "elbow of the angle" not in choices(PATH.assign(angle=[0, 0.1, np.nan, 0.5]))
    with pytest.raises(ValueError, match="no checkpoint to choose"):
        choices(PATH[:1])


def test_minima_and_elbows():
    assert first_minimum(np.array([3.0, 2.0, 1.0])) == 2 and first_minimum(np.array([1.0, 2.0, 0.0])) == 0
    assert elbow(np.array([5]), np.array([1.0])) == 0
    assert elbow(np.array([1, 2, 3, 4]), np.array([1.0, 2.0, 2.1, 2.2])) == 1
    assert elbow(np.array([10, 20, 120]), np.array([1.0, 2.0, 3.0])) == 1, "slopes are a step"


def table(condition=None, seed=3, shift=0.0):
    names = {"id_loss": ("id", "loss"), "id_accuracy": ("id", "accuracy"), "ood": ("ood", "accuracy"),
             "angle": ("weights", "rotation")}  # fmt: skip
    rows = [
        ("sft", "sft", 0, row["step"], seed, *names[column], row[column] + shift * (column == "ood") * row["step"], 9)
        for _, row in PATH.iterrows()
        for column in names
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame if condition is None else frame.assign(condition=condition)


def test_regret_is_what_is_missing_to_the_peak():
    found = regrets(paths(table(), SPLITS)).set_index("rule")["regret"]
    assert found["last"] == pytest.approx(0.5) and found["first minimum of the ID loss"] == 0
    assert found["highest ID accuracy"] == pytest.approx(0.1)
    assert "elbow of the KL from the base" not in found


def test_regrets_are_means_over_conditions_with_intervals_over_seeds():
    many = pd.concat([table(c, s, 0.0001 * s) for c in ("a", "b") for s in (1, 2, 3)])
    found = by_rule(regrets(paths(many, SPLITS)))
    assert found["last"].n == 3 and found["last"].low < found["last"].value < found["last"].high
    assert list(found)[-1] in ("last", "lowest ID loss") and found["10% of the steps"].value == 0
    assert next(iter(found.values())).value == 0
