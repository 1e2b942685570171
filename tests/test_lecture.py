"""What the notebooks say beside the paper, and the names that they give to what computes it."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

import oodlib
from oodlib.analysis import claims
from oodlib.analysis.evidence import Evidence
from oodlib.config import ROOT, load_config
from oodlib.run import Run
from oodlib.widgets.lecture import beside_the_paper

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


def test_the_paper_s_numbers_have_the_unit_of_the_run_s():
    run = Run(load_config("tiny"), ROOT / "outputs" / "tiny")
    table = beside_the_paper(Evidence.of(run), *claims.RULES).data.set_index("claim")
    paper = table["the paper"][table["the paper"] != "no number"]
    assert len(paper) == 4
    for claim, number in paper.items():
        assert number.split()[1:] == table.loc[claim, "this run [95 %]"].split()[3:], claim
    assert paper.iloc[0] == "+10.6 points"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_function_that_a_text_names_is_there(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "markdown"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    package = Path(oodlib.__file__).parent
    for module, name in re.findall(r"`(?:oodlib\.)?((?:arms\.)?[a-z_]+)\.(\w+)`", text):
        if (package / f"{module.replace('.', '/')}.py").exists() and name != "py":
            assert hasattr(import_module(f"oodlib.{module}"), name), f"{module}.{name}"
