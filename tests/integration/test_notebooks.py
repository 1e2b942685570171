"""The notebooks: clean as committed, plain to read, and every one runs through papermill from end to end."""

import ast
import json
import logging
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module

import nbformat
import papermill
import pytest
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from oodlib.cli.execute import STAGE_NOTEBOOKS
from oodlib.config import CHECKOUT, Config, read_yaml

FOLDER = CHECKOUT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
STAGES = sorted(FOLDER.glob(STAGE_NOTEBOOKS))
TRAINERS = {  # what a stage's notebook shows of the code that it runs
    "01_sft_curve": {"demonstrations", "supervised", "sft_trainer"},
    "02_rl_recovery": {"checker_rewards", "advantages", "group_trainer"},
    "03_svd_rotation": {"restore"},
}


def read(path):
    return nbformat.read(path, as_version=4)


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def text(path):
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def parameters(path):
    (cell,) = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def execute(path, target, **values):
    papermill.execute_notebook(path, target, values, progress_bar=False, kernel_name="python3")
    return [output for cell in code(target) for output in cell.outputs]


def pictures(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


# ---- as committed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebooks_hold_no_output_no_definition_and_short_cells(path):
    for cell in code(path):
        assert not cell.outputs and cell.execution_count is None
        nodes = ast.walk(ast.parse(cell.source))
        assert not [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Lambda))], cell.source
        assert len(cell.source.splitlines()) <= 15 or "parameters" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("path", STAGES, ids=lambda p: p.stem)
def test_every_stage_s_notebook_offers_every_section_and_shows_its_settings(path):
    own = {"base": "None", "checkpoints": "None"} if path.stem.startswith("03") else {}  # one's own models
    lines = [line for line in parameters(path).source.splitlines() if not line.startswith("#")]
    scope = dict(line.split("  #")[0].split(" = ") for line in lines)
    assert list(scope) == ["preset", "like", *[name for name in Config.model_fields if name != "preset"], *own]
    assert scope.pop("preset") == '"tiny"' and set(scope.values()) == {"None"}
    assert len({parameters(p).source.split("\nbase =")[0] for p in STAGES}) == 1, "the cell is the same in all"
    shown = " ".join(cell.source for cell in code(path))
    assert "run.config.table(" in shown
    assert set(re.findall(r"show_code\((\w+)\)", shown)) == TRAINERS.get(path.stem, set())


def test_no_sentence_stands_in_two_notebooks():
    times = Counter()
    for path in NOTEBOOKS:
        lines = [line for line in text(path).splitlines() if not line.startswith(("#", "<", "**Terms"))]
        times.update({s for s in re.split(r"(?<=[.?!:])\s+", " ".join(lines)) if len(s) > 20})
    assert not [sentence for sentence, n in times.items() if n > 1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_a_text_names_is_there(path):
    for dotted in re.findall(r"`(oodlib(?:\.\w+)+)`", text(path)):
        module, _, name = dotted.rpartition(".")
        assert hasattr(import_module(module), name), dotted
    for file in re.findall(r"`((?:oodlib|outputs|params|tests)/[\w./-]+)`", text(path)):
        assert (CHECKOUT / file).exists(), file
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text(path)):
        assert (FOLDER / link).exists(), link
    for setting in re.findall(r"`((?:sft|rl|model|eval|rotation|surgery)\.\w+)[`=]", text(path)):
        section, name = setting.split(".")
        assert name in Config.model_fields[section].annotation.model_fields, setting


# ---- the parameters, in a kernel -------------------------------------------------------------------


def test_parameters_are_read_from_their_cell_whatever_else_is_run_and_refused_every_time():
    """One kernel: two misspelt parameters, then right ones, with papermill's own cell; the set-up cell runs twice."""
    path = FOLDER / "04_scorecard.ipynb"
    given, setup = [cell.source for cell in code(path)][:2]

    def injected(**values):
        cells = parameterize_notebook(load_notebook_node(str(path)), values).cells
        return [cell.source for cell in cells if str(cell.metadata.get("tags", "")).find("parameters") > 0]

    good = injected(preset="smoke", seed=3, sft={"learning_rate": 2e-4})
    sources = [
        *injected(sede=3), setup, setup,
        *injected(sft={"stepz": 3}), setup,
        *good, setup, "before, task, seed, sft = run.config, run.task, 99, None", setup,
        "print(run.config == before, run.config.seed, run.config.sft.learning_rate, run.config.task.name)",
    ]  # fmt: skip
    assert sources[0] == given
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": FOLDER}}
    ).execute()
    errors = [o for cell in notebook.cells for o in cell.outputs if o.output_type == "error"]
    assert [e.ename for e in errors] == ["ValueError"] * 3
    assert all("sede" in e.evalue and "seed" in e.evalue for e in errors[:2])
    assert "sft.stepz" in errors[2].evalue and "sft.steps" in errors[2].evalue
    assert notebook.cells[-1].outputs[0].text == "True 3 0.0002 general_points\n"


# ---- as run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """The command itself, from another directory, with the preset smoke."""
    out = tmp_path_factory.mktemp("runs") / "smoke"
    command = [sys.executable, "-m", "oodlib.cli", "reproduce", "--preset", "smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=out.parent, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def test_reproduce_leaves_everything_a_reader_wants(reproduced):
    out, printed = reproduced
    assert "C9" in printed and "supported" in printed
    assert str(out / "report.html") in printed
    assert "One hand, two rules" in (out / "report.html").read_text(encoding="utf-8")
    assert {p.name for p in (out / "notebooks").iterdir()} == {p.name for p in STAGES}
    assert len(list((out / "figures").glob("*.png"))) >= 10
    card = json.loads((out / "scorecard.json").read_text(encoding="utf-8"))
    assert list(dict.fromkeys(c["claim"] for c in card)) == [f"C{i}" for i in range(1, 14)]
    assert {c["test"] for c in card} == {"paper", "baselines"}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["sft"]["steps"] == 24 and manifest["seeds"] == [10]
    for stage in ("sft", "rl", "rotation", "surgery", "all"):
        assert manifest["stages"][stage]["wall_s"] > 0 and manifest["stages"][stage]["peak_mib"] > 0
    assert {"git", "tree", "packages", "hardware"} <= set(manifest)
    assert not [p for p in out.rglob(".*") if not p.name.endswith("lock")], "nothing half-written stays"
    header = (out / "measurements.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "stage,arm,from_step,step,seed,split,metric,value,n"


def test_executed_notebooks_are_whole_and_name_no_path_of_the_machine(reproduced):
    for path in (reproduced[0] / "notebooks").iterdir():
        assert str(CHECKOUT) not in path.read_text(encoding="utf-8")
        outputs = [output for cell in code(path) for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        if path.stem in TRAINERS:
            assert pictures(outputs) >= 3
            assert any("What was seen" in str(o.get("data", {})) for o in outputs)


def test_notebook_03_compares_one_s_own_checkpoints(reproduced, tmp_path):
    out, _ = reproduced
    checkpoint = next((out / "checkpoints").glob("seed-10/sft-*/checkpoint-24"))
    values = {"preset": "smoke", "out": str(out), "base": "tiny", "checkpoints": [str(checkpoint)]}
    execute(FOLDER / "03_svd_rotation.ipynb", tmp_path / "out.ipynb", **values)
    assert (out / "compare" / "checkpoint-24.parquet").exists()
    assert pictures([output for cell in code(tmp_path / "out.ipynb")[-2:] for output in cell.outputs]) == 2


def test_papermill_with_a_configuration_s_file_gives_no_warning(reproduced, tmp_path, caplog):
    """As in the docs: parameters from the YAML file, one changed; what is done is loaded."""
    values = {**read_yaml(CHECKOUT / "params" / "smoke.yaml"), "out": str(reproduced[0])}
    with caplog.at_level(logging.WARNING):
        outputs = execute(FOLDER / "04_scorecard.ipynb", tmp_path / "out.ipynb", **values)
    assert not [r for r in caplog.records if "unknown parameter" in r.getMessage()]
    assert "already done" in str(outputs)


@pytest.mark.parametrize(("name", "plan"), [("05_when_does_rl_heal", "sweep"), ("06_mitigations", "mitigations")])
def test_the_sweeps_notebooks_draw_from_the_committed_tables(name, plan, tmp_path):
    outputs = execute(FOLDER / f"{name}.ipynb", tmp_path / "out.ipynb")
    assert pictures(outputs) >= 2
    assert any("**" in str(o.get("data", {}).get("text/markdown", "")) for o in outputs), "the answer is computed"
    command = ["git", "status", "--porcelain", f"outputs/{plan}"]
    changed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, encoding="utf-8").stdout
    assert "figures" not in changed, "readers change no committed figure"
