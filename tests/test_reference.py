"""The committed reference runs: figures and scorecard come again from their tables alone."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from oodlib import Run, ensure, plots
from oodlib.analysis import claims
from oodlib.analysis.evidence import Evidence
from oodlib.analysis.stats import rotation_and_accuracy
from oodlib.config import SHARE as ROOT
from oodlib.config import load_config
from oodlib.io import COLUMNS
from oodlib.stages import STAGES

REFERENCES = [p.parent.name for p in (ROOT / "outputs").glob("*/manifest.json")]
BIG = 5 * 2**20


@pytest.fixture(scope="module", params=[r for r in REFERENCES if r in ("tiny", "tiny-seeds")])
def reference(request, tmp_path_factory):
    """The run as a reader's notebook gets it: nothing of its own, no checkpoints."""
    run = Run(load_config(request.param), tmp_path_factory.mktemp("reader") / "run")
    for stage in STAGES:
        ensure(run, stage)
    assert run.borrowed == set(STAGES)
    return run


def test_the_default_preset_has_a_committed_reference():
    assert "tiny" in REFERENCES


def test_it_is_small_and_holds_no_weights(reference):
    folder = reference.sources["sft"]
    ignored = {"parts", "checkpoints", "report.html"}  # by git
    kept = [p for p in folder.rglob("*") if p.is_file() and not ignored & set(p.parts)]
    assert sum(p.stat().st_size for p in kept) <= BIG * (1 if reference.config.n_seeds == 1 else 2)
    assert not [p for p in kept if p.suffix in (".safetensors", ".bin", ".pt")]


def test_its_table_is_tidy(reference):
    table = reference.table("measurements")
    assert list(table.columns) == COLUMNS
    keys = COLUMNS[:7]
    assert not table.duplicated(keys).any() and table["value"].notna().all()
    assert set(table["seed"]) == set(reference.config.seeds)


def test_its_accuracies_are_the_shares_of_right_hands(reference):
    hands = reference.table("hands")
    keys = ["stage", "arm", "from_step", "step", "seed", "split"]
    hands = hands.astype(dict.fromkeys(("stage", "arm", "split", "outcome"), str))
    shares = (hands["outcome"] == "correct").groupby([hands[k] for k in keys]).mean().rename("share").reset_index()
    table = reference.table("measurements").query("metric == 'accuracy'")
    both = table.merge(shares, on=keys, how="outer")
    np.testing.assert_allclose(both["value"], both["share"], atol=1e-5)


def test_its_scorecard_is_what_its_tables_say(reference):
    committed = json.loads((reference.sources["sft"] / "scorecard.json").read_text())
    again = json.loads(claims.as_json(claims.scorecard(Evidence.of(reference))))
    for old, new in zip(committed, again, strict=True):
        assert old["verdict"] == new["verdict"] and old["claim"] == new["claim"]
        for name in ("estimate", "ci_low", "ci_high", "paper"):
            assert (pd.isna(old[name]) and pd.isna(new[name])) or old[name] == pytest.approx(new[name], abs=1e-6)


@pytest.fixture(scope="module")
def drawn(reference):
    """Every figure of the run by its file's name."""
    plots.style()
    table, rollouts, rotation = (reference.table(name) for name in ("measurements", "rollouts", "rotation"))
    made = {
        "01_accuracy": plots.accuracy_curve(table),
        "01_losses": plots.losses(table, reference.table("hands")),
        "01_outcomes": plots.outcomes(table),
        "02_recovery": plots.recovery(table),
        "02_advantages": plots.advantages(rollouts),
        "02_reward": plots.rewards(rollouts),
        "03_spectrum": plots.value_change(rotation),
        "03_rotation_map": plots.rotation_map(rotation),
        "03_turning": plots.turning(rotation),
        "03_surgery": plots.surgery(table),
        "04_scorecard": plots.scorecard(claims.scorecard(Evidence.of(reference))),
    }
    made["01_rotation"] = plots.rotation_and_accuracy(rotation_and_accuracy(table, "sft"))
    made["02_rotation"] = plots.rotation_and_recovery(rotation_and_accuracy(table, "rl"))
    yield made
    for figure in made.values():
        plt.close(figure)


def test_every_committed_figure_can_be_drawn_again(reference, drawn):
    assert {p.stem for p in (reference.sources["sft"] / "figures").glob("*.png")} == set(drawn)
    for name, figure in drawn.items():
        for axis in figure.axes:
            assert axis.get_xlabel() or axis.get_ylabel() or not axis.axison or name in ("02_advantages",), name


def test_every_figure_can_be_read_in_a_notebook(drawn, smallest_text, texts_on_texts):
    for name, figure in drawn.items():
        assert smallest_text(figure) >= 9, name
        assert texts_on_texts(figure) == [], name


def test_the_readme_shows_the_scorecard_of_the_committed_run():
    run = Run(load_config("tiny-seeds"), ROOT / "outputs" / "tiny-seeds")
    card = claims.scorecard(Evidence.of(run))
    assert claims.as_markdown(card) in (ROOT / "README.md").read_text()
