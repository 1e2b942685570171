"""The notebooks: clean as committed, and every one runs through papermill from end to end."""

import json
import logging
import subprocess
import sys

import nbformat
import papermill
import pytest

from oodlib.analysis.sweep import Sweep
from oodlib.cli import STAGE_NOTEBOOKS
from oodlib.config import ROOT, Config, load_config

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = sorted((ROOT / "notebooks").glob(STAGE_NOTEBOOKS))


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebooks_hold_no_output_and_short_cells(path):
    for cell in read(path).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            assert "class " not in cell.source
            if "parameters" not in cell.metadata.get("tags", []):
                assert len(cell.source.splitlines()) <= 30


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_every_stage_s_notebook_offers_every_parameter(path):
    (cell,) = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    scope = dict(line.split("  #")[0].split(" = ") for line in cell.source.splitlines() if not line.startswith("#"))
    besides = ["base", "checkpoints"] if path.stem.startswith("03") else []  # one's own models
    assert list(scope) == [*Config.model_fields, *besides]
    assert scope.pop("preset") == '"tiny"' and set(scope.values()) == {"None"}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """The command itself, from another directory, with the preset smoke."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    command = [sys.executable, "-m", "oodlib.cli", "reproduce", "--preset", "smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_reproduce_leaves_everything_a_reader_wants(reproduced):
    out, printed = reproduced
    assert "C9" in printed and "supported" in printed
    assert str(out / "report.html") in printed and "One hand, two rules" in (out / "report.html").read_text()
    assert {p.name for p in (out / "notebooks").iterdir()} == {p.name for p in STAGES}
    figures = {p.stem for p in (out / "figures").glob("*.png")}
    assert figures == {p.stem for p in (out / "figures").glob("*.svg")} and len(figures) >= 10
    card = json.loads((out / "scorecard.json").read_text())
    assert [c["claim"] for c in card] == [f"C{i}" for i in range(1, 10)]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["parameters"]["sft_steps"] == 24 and manifest["seeds"] == [10]
    for stage in ("sft", "rl", "rotation", "surgery", "all"):
        assert manifest["stages"][stage]["wall_s"] > 0 and manifest["stages"][stage]["peak_mib"] > 0
    assert {"git", "packages", "hardware", "code"} <= set(manifest)
    assert not [p for p in out.rglob(".*") if not p.name.endswith("lock")], "nothing half-written stays"
    header = (out / "measurements.csv").read_text().splitlines()[0]
    assert header == "stage,arm,from_step,step,seed,split,metric,value,n"


def test_executed_notebooks_name_no_path_of_the_machine(reproduced):
    for path in (reproduced[0] / "notebooks").iterdir():
        assert str(ROOT) not in path.read_text()


def test_every_reported_figure_is_in_the_executed_notebooks(reproduced):
    for path in (reproduced[0] / "notebooks").iterdir():
        outputs = [o for c in read(path).cells if c.cell_type == "code" for o in c.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        if path.stem[:2] in ("01", "02", "03"):
            assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
            assert any("What was seen" in str(o.get("data", {})) for o in outputs)


def test_notebook_03_compares_one_s_own_checkpoints(reproduced, tmp_path):
    checkpoint = next((reproduced[0] / "checkpoints").glob("seed-10/sft-*/checkpoint-24"))
    parameters = {**load_config("smoke").model_dump(), "out": str(reproduced[0]), "base": "tiny"}
    papermill.execute_notebook(
        ROOT / "notebooks" / "03_svd_rotation.ipynb",
        tmp_path / "out.ipynb",
        {**parameters, "checkpoints": [str(checkpoint)]},
        progress_bar=False,
        kernel_name="python3",
    )
    assert (reproduced[0] / "compare" / "checkpoint-24.parquet").exists()
    shown = [o for c in read(tmp_path / "out.ipynb").cells[-4:] if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in shown) == 2


def test_papermill_with_a_preset_s_file_gives_no_warning(reproduced, tmp_path, caplog):
    """As in the README: parameters from the YAML file, one changed; what is done is loaded."""
    out, _ = reproduced
    with caplog.at_level(logging.WARNING):
        papermill.execute_notebook(
            ROOT / "notebooks" / "01_sft_curve.ipynb",
            tmp_path / "out.ipynb",
            {**load_config("smoke").model_dump(), "out": str(out)},
            progress_bar=False,
            kernel_name="python3",
        )
    assert not [r for r in caplog.records if "unknown parameter" in r.getMessage()]
    text = "".join(str(c.get("outputs")) for c in read(tmp_path / "out.ipynb").cells)
    assert "already done" in text


def test_a_wrong_parameter_stops_a_notebook_at_once_with_one_sentence(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            ROOT / "notebooks" / "01_sft_curve.ipynb",
            tmp_path / "out.ipynb",
            {"preset": "smoke", "sft_stepz": 3},
            progress_bar=False,
            kernel_name="python3",
        )
    assert caught.value.ename == "ValueError"
    assert "unknown parameter 'sft_stepz'" in caught.value.evalue and "sft_steps" in caught.value.evalue


@pytest.mark.parametrize(("name", "phase"), [("05_when_does_rl_heal", "confirm"), ("06_remedies", "remedies")])
def test_the_sweep_s_notebooks_draw_from_the_committed_tables(name, phase, tmp_path):
    assert not Sweep().left(phase), "a declared phase is measured whole"
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb", progress_bar=False, kernel_name="python3"
    )
    outputs = [o for c in read(tmp_path / "out.ipynb").cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    assert any("**" in str(o.get("data", {}).get("text/markdown", "")) for o in outputs), "the answer is computed"
    changed = subprocess.run(
        ["git", "status", "--porcelain", "outputs/sweep"], cwd=ROOT, capture_output=True, text=True
    )
    assert not [line for line in changed.stdout.splitlines() if "figures" in line], "readers change no committed figure"
