"""The figures of SFT and RL, from small made-up tables: what they show, for any splits, and that it can be read."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from oodlib import plots
from oodlib.io import as_measurements
from oodlib.plots import widgets as pictures
from oodlib.tasks import Split, Splits, get_task

CARDS = get_task("general_points").splits
TWO = Splits(Split("train_like", "near", colour="#0072B2"), Split("other", "far", ("other",), "#D55E00"))
THREE = replace(TWO, others=(Split("third", "third", ("third",), "#E69F00"),))
STEPS = (0, 2, 4, 8, 16, 40, 100, 300)
CURVE = (0.0, 0.2, 0.5, 0.7, 0.6, 0.4, 0.3, 0.2)  # peaks at step 8


def table(splits, seeds=(1, 2), measures=True):
    rows = []

    def evaluation(place, split, accuracy):
        metrics = {"accuracy": accuracy, "wrong_value": 1 - accuracy, "loss": 1.5 - accuracy}
        metrics |= dict.fromkeys(("wrong_numbers", "illegal", "malformed"), 0.0)
        if measures:
            same_rule = set(split.changes) <= {"numbers"}
            metrics |= {"numbers_read": 0.9 * (accuracy > 0), "old_rule": accuracy if same_rule else 0.1}
            metrics["old_numbers"] = metrics["numbers_read"] if same_rule else 0.2
        rows.extend((*place, split.name, metric, value, 100) for metric, value in metrics.items())

    for seed in seeds:
        for step, accuracy in zip(STEPS, CURVE, strict=True):
            for i, split in enumerate((*splits, *splits.probes)):
                evaluation(("sft", "sft", 0, step, seed), split, accuracy * (1 - 0.03 * i) + 0.02 * seed * (step > 0))
        for arm in ("rl", "rejection_sampling"):
            for start in (8, 40, 300):
                for split in (*splits, *(splits.probes if arm == "rl" else ())):
                    evaluation(("rl", arm, start, 80, seed), split, 0.3 + 0.05 * seed)
        rows += [("sft", "sft", 0, step, seed, "train", "loss", 0.5 + 1 / step, 32) for step in range(1, 301)]
    return as_measurements(rows)


def hands(splits, spread=(0.1, 0.3, 0.2)):
    return pd.DataFrame([("sft", t, s.name, loss) for t in STEPS for s in splits for loss in spread]).set_axis(
        ["stage", "step", "split", "loss"], axis=1
    )


def turned(splits):
    rows = [(s, "rl", 8, t, v, v, t / 900, 100, 100) for s in (1, 2) for t, v in zip(STEPS, CURVE, strict=True)]
    columns = ["seed", "arm", "from_step", "step", "trained", "headline", "rotation", "n_trained", "n_headline"]
    return pd.DataFrame(rows, columns=columns)


FIGURES = {
    "accuracy": lambda splits, seeds: plots.accuracy_curve(table(splits, seeds), splits),
    "corners": lambda splits, seeds: plots.corners(table(splits, seeds), splits),
    "losses": lambda splits, seeds: plots.losses(table(splits, seeds), hands(splits), splits),
    "outcomes": lambda splits, seeds: plots.outcomes(table(splits, seeds), splits),
    "recovery": lambda splits, seeds: plots.recovery(table(splits, seeds), splits),
    "rotation": lambda splits, seeds: plots.rotation_and_accuracy(turned(splits), splits),
    "gained": lambda splits, seeds: plots.rotation_and_recovery(turned(splits), splits),
}


@pytest.fixture(autouse=True)
def look():
    plots.style()
    yield
    plt.close("all")


def words(figure):
    return " ".join(t.get_text() for t in figure.findobj(plt.Text) if t.get_visible())


@pytest.mark.parametrize("seeds", [(1,), (1, 2)], ids=["one seed", "two seeds"])
@pytest.mark.parametrize("splits", [CARDS, TWO, THREE], ids=["corners", "two", "three"])
@pytest.mark.parametrize("name", FIGURES)
def test_any_splits_are_drawn_and_can_be_read(name, splits, seeds, smallest_text, texts_on_texts):
    figure = FIGURES[name](splits, seeds)
    assert figure.get_size_inches()[0] <= 9.2 and smallest_text(figure) >= 9 and texts_on_texts(figure) == []
    shown = words(figure)
    named = {"gained": [splits.headline], "rotation": [splits.trained, splits.headline]}.get(name, splits)
    assert all(split.label in shown for split in named)


def test_the_peak_of_the_mean_is_marked():
    assert "OOD peak: 66.7%\nat step 8" in words(plots.accuracy_curve(table(CARDS), CARDS))


def test_a_corner_s_panel_shows_clinging_only_where_the_rule_is_new():
    figure = plots.corners(table(CARDS), CARDS)
    lines = {axis.get_title("left"): len(axis.get_lines()) for axis in figure.axes}
    assert lines == {"ID": 3, "new numbers": 3, "new rule": 5, "OOD": 5}, "the measures, and the peak's mark"
    for heading in ("the rule of SFT", "new rule", "the numbers of SFT", "new numbers"):
        assert heading in words(figure)
    plain = plots.corners(table(TWO, measures=False), TWO)
    assert [len(axis.get_lines()) for axis in plain.axes] == [2, 2] and "read" not in words(plain)


def test_face_values_are_shown_from_the_base_to_rl(smallest_text, texts_on_texts):
    figure = plots.face_values(table(CARDS), CARDS)
    assert smallest_text(figure) >= 9 and texts_on_texts(figure) == []
    left, _ = figure.axes
    curves = {bars.get_label(): bars.lines[0] for bars in left.containers}
    story = ["base", "peak (step 8)", "middle (step 40)", "RL from step 40", "end (step 300)", "RL from step 300"]
    assert list(curves) == story and left.get_xlabel().startswith("what J, Q and K count for")
    line = curves["RL from step 40"]
    assert [round(x) for x in line.get_xdata()] == list(range(1, 14)) and np.allclose(line.get_ydata(), 0.375)


def test_face_values_draw_what_is_there_and_shade_new_numbers():
    probes = tuple(replace(p, changes=("rule", "numbers")) if p.value > 10 else p for p in CARDS.probes)
    splits = replace(CARDS, probes=probes)
    rows = table(splits, measures=False).query("stage == 'sft'")
    (axis,) = plots.face_values(rows, splits).axes
    assert len(axis.containers) == 4, "the base, the peak, the middle, the end"
    (shade,) = axis.patches
    assert shade.get_extents().transformed(axis.transData.inverted()).x0 == pytest.approx(10.5)


@pytest.mark.parametrize("splits", [CARDS, TWO], ids=["corners", "two"])
def test_the_widgets_pictures_take_any_splits(splits, smallest_text, texts_on_texts):
    angles = [("rotation", "sft", 8, module, layer, 0.1) for module in ("q_proj", "k_proj") for layer in range(4)]
    rotation = pd.DataFrame(angles, columns=["metric", "stage", "step", "module", "layer", "value"])
    known = {name: dict.fromkeys(splits.names, value) for name, value in (("end", 0.2), ("peak", 0.8))}
    edited = pictures.edited(dict.fromkeys(splits.names, (0.5, 0.4, 0.6)), known, "an edit", splits)
    for figure in (pictures.timeline(table(splits, (1,)), rotation, 8, splits), edited):
        assert smallest_text(figure) >= 9 and texts_on_texts(figure) == []
        assert all(split.label in words(figure) for split in splits)
