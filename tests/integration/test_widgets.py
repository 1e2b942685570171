"""The widgets over a small run: what is shown where nobody sits, and what changes when a control does."""

import base64

import ipywidgets
import numpy as np
import pytest
import torch
from IPython.display import Javascript

from oodlib import Run, ensure, widgets
from oodlib.config import load_config
from oodlib.inference.evaluation import evaluate
from oodlib.inference.token_probabilities import likeliest, parting, say
from oodlib.models.loading import load_model
from oodlib.models.sources import model_folder
from oodlib.tasks import get_task
from oodlib.widgets import lecture, parts
from oodlib.widgets.models import Bench, Models

VIEW = "application/vnd.jupyter.widget-view+json"
TASK = get_task("general_points")
ALL = ("play", "timeline", "surgery", "rollouts")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    changes = {
        "eval.every": 60,
        "sft.steps": 4,
        "sft.checkpoints": [0, 2, 4],
        "sft.batch_size": 4,
        "rl.baselines": [],
    }
    changes |= {"rl.starts": [4], "rl.steps": 2, "surgery.draws": 0, "surgery.embeddings": False}
    out = str(tmp_path_factory.mktemp("runs") / "run")
    made = Run(load_config("smoke", {"out": out, "machine.reference": False, "machine.jobs": 1, **changes}))
    for stage in ("sft", "rl", "surgery"):
        ensure(made, stage)
    return made


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, one entry a call."""
    found = []
    monkeypatch.setattr(parts, "display", lambda what, **_: isinstance(what, Javascript) or found.append(what))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("VSCODE_PID", raising=False)
    return found


@pytest.fixture
def operated(monkeypatch, run):
    """Open a widget of the run; its controls by their label, and a function that gives its result's HTML."""
    return lambda name: opened(getattr(widgets, name), run, monkeypatch)[:2]


def opened(widget, run, monkeypatch):
    """A widget's controls by their label, a function that gives its result's HTML, and what stands in its place."""
    made = {}
    monkeypatch.setattr(parts, "show_widget", lambda name, controls, result, still: made.update(locals()))
    widget(run)
    controls = {c.description: c for c in made["controls"]}
    assert all(controls), "every control has a label"
    html = lambda: "".join(w.value for w in leaves(made["result"]) if isinstance(w, ipywidgets.HTML))  # noqa: E731
    return controls, html, made["still"]


def leaves(widget):
    children = getattr(widget, "children", None)
    return [widget] if children is None else [leaf for child in children for leaf in leaves(child)]


@pytest.mark.parametrize("name", ALL)
def test_a_picture_or_a_table_stands_where_nobody_operates_and_the_widget_where_somebody_does(
    name, run, shown, monkeypatch
):
    getattr(widgets, name)(run)
    still = shown[-1]
    assert VIEW not in still
    if name == "timeline":
        assert base64.b64decode(still["image/png"]).startswith(b"\x89PNG")
    else:
        assert ("in Jupyter" if name == "surgery" else "<th") in still["text/html"]
    monkeypatch.setenv("JPY_SESSION_NAME", "01.ipynb")
    getattr(widgets, name)(run)
    assert {VIEW, *still} <= set(shown[-1]), "GitHub takes the picture or the table, Jupyter the widget"


def test_play_judges_every_model_and_says_what_is_wrong_with_a_hand(operated, run):
    controls, result = operated("play")
    before = result()
    for name in ("base", "OOD peak", "end of SFT (step 4)", "RL from step 4"):
        assert name in before
    assert "Solutions of (5, 5, 12, 1)" in before and "12*(1+5/5)" in before
    controls["rule"].value = "id"
    assert "Solutions of (5, 5, 10, 1)" in result() and controls["J"].value == 10
    controls["hand"].value = "5 5 5 X"
    controls["play"].click()
    assert "unknown card" in result() and "&#x27;X&#x27;" in result()
    for split in run.splits:
        controls["rule"].value = split.name
        controls["deal"].click()
        assert "Solutions of" in result() and ": none" not in result(), "what is dealt can be solved by its rule"
        dealt = sorted(controls["hand"].value.split())
        assert dealt in [sorted(problem.cards) for problem in run.task.split(split.name)]


def test_a_hand_stays_where_the_chosen_split_has_it(operated):
    controls, _ = operated("play")
    assert controls["hand"].value == "5 5 Q A"
    controls["rule"].value = "id"
    assert controls["hand"].value == "5 5 Q A"
    controls["rule"].value = "new_numbers"
    assert {"11", "12", "13"} & set(controls["hand"].value.split()), "which has no face cards"


def test_before_anything_is_trained_the_base_answers(monkeypatch, tmp_path):
    run = Run(load_config("smoke", {"out": str(tmp_path), "machine.reference": False}))
    _, result, still = opened(widgets.play, run, monkeypatch)
    assert still == result() and "base" in still and "Solutions of (5, 5, 12, 1)" in still and "OOD peak" not in still


def test_play_shows_what_two_models_might_have_said_where_they_part(operated):
    _, result = operated("play")
    assert ("They part after" in result() and "likeliest next" in result()) or "say the same" in result()


def test_the_timeline_moves_to_another_checkpoint(operated):
    controls, result = operated("timeline")
    controls["SFT step"].value = 2
    two = result()
    controls["SFT step"].value = 4
    assert "after 2 steps" in two and "after 4 steps" in result() and two != result()


def test_surgery_refuses_an_overlap_and_measures_edits(operated):
    controls, result = operated("surgery")
    controls["leading %"].value = 0
    nothing = result()
    assert "leading 0 %" in nothing and "OOD" in nothing and "[" in nothing
    controls["trailing %"].value = 60
    controls["leading %"].value = 60
    assert "at most 100 %" in result()
    controls["trailing %"].value = 0
    controls["measure on all hands"].click()
    assert "all " in result() and "leading 60 %" in result()


def test_rollouts_show_a_group_s_answers_with_reward_and_advantage(operated, run):
    controls, result = operated("rollouts")
    table = run.table("rollouts")
    update = sorted(table["update"].unique())[-1]
    controls["update"].value = update
    group = controls["hand"].options[-1][1]
    controls["hand"].value = group
    rows = table[(table["update"] == update) & (table["group"] == group)]
    assert len(rows) == run.config.rl.samples and f"cards {rows['problem'].iloc[0]}" in result()
    for row in rows.itertuples():
        assert f"{row.reward:+g}" in result() and f"{row.advantage:+.2f}" in result()


def test_missing_checkpoints_are_named_and_trained_at_a_button_s_press(run, tmp_path, shown):
    fresh = Run(run.config.changed({"out": str(tmp_path / "other")}))
    fresh.sources = dict.fromkeys(("sft", "rl"), run.folder)  # its tables, as of a committed reference run
    models = Models(fresh, None)
    names = [name for name in models.keys if models.missing(name)]
    assert names and "base" not in names
    ready = []
    box = parts.checkpoints_needed(models, names, lambda: ready.append(True))
    note, row = box.children
    button, bar = row.children
    assert all(name in note.value for name in names) and not ready
    button.click()
    assert ready and not models.missing() and not box.children and bar.layout.visibility == "visible"


@pytest.fixture(scope="module")
def base():
    return load_model(model_folder("tiny"))


def test_what_is_said_comes_with_its_probabilities(base):
    prompt = TASK.prompt(TASK.split("ood")[40], "compact")
    said = say(*base, prompt, 32)
    assert len(said.tokens) == len(said.sure) == len(said.choices)
    np.testing.assert_allclose(said.choices.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(said.sure, said.choices.max(1).values, atol=1e-6)  # greedy
    first = likeliest(said, 0, base[1])
    assert next(iter(first)) == said.tokens[0] and list(first.values()) == sorted(first.values(), reverse=True)
    other = say(*base, prompt.replace("json", "formula"), 32)
    place = parting(said, other)
    assert said.tokens[:place] == other.tokens[:place] and said.tokens[place] != other.tokens[place]
    assert parting(said, said) is None


def test_an_edit_of_nothing_is_the_recipient_and_edits_do_not_add_up(run):
    folders = run.sft_weights(10, 4), run.sft_weights(10, 2)
    bench = Bench(*folders, run.config)
    own = evaluate(*load_model(folders[0]), TASK, "id", "compact", 32, every=60)
    whole = bench.measure("vectors", 1, 0, bench.layers)
    assert bench.measure("vectors", 0, 0, bench.layers)[0]["id"][0] == (own["outcome"] == "correct").mean()
    assert bench.measure("vectors", 1, 0, bench.layers) == whole
    assert bench.measure("values", 1, 0, [])[0] == bench.measure("vectors", 0, 0, bench.layers)[0]
    assert all(torch.equal(bench.recipient[n], t) for n, t in load_model(folders[0])[0].state_dict().items())


def test_a_guess_stands_beside_the_measurement(shown, monkeypatch):
    lecture.Guess("How many?").against(0.25)
    assert "How many?" in shown[0]["text/html"] and "Measured: 25%" in shown[1]["text/html"]
    monkeypatch.setenv("JPY_SESSION_NAME", "01.ipynb")
    guess = lecture.Guess("How many?")
    guess.against(0.25)
    assert VIEW in shown[-1] and "No guess" in guess.answer.value
    guess.slider.value = 0.4
    assert "You guessed 40%" in guess.answer.value
