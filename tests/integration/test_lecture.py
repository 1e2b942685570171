"""What the notebooks say beside the paper, and the names that they give to what computes it."""

import json
import re
from importlib import import_module

import pytest

from oodlib.analysis.claims import judge
from oodlib.analysis.evidence import Evidence
from oodlib.config import SHARE, outputs_folder
from oodlib.results import Results
from oodlib.widgets import beside_the_paper

NOTEBOOKS = sorted((SHARE / "notebooks").rglob("0*.ipynb"))


def test_the_paper_s_numbers_have_the_unit_of_the_run_s():
    evidence = Evidence.of(Results(outputs_folder() / "tiny"))
    table = beside_the_paper(evidence, *(f"C{i}" for i in (*range(1, 10), 11))).data.set_index("claim")
    paper = table["the paper"][table["the paper"] != "no number"]
    assert len(paper) == sum(judge(f"C{i}", evidence).paper is not None for i in (*range(1, 10), 11)) > 3
    for claim, number in paper.items():
        assert number.split()[1:] == table.loc[claim, "this run [95 %]"].split()[3:], claim
    assert paper.iloc[0] == "+10.6 points"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_function_that_a_text_names_is_there(path):
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    for module, name in re.findall(r"`(oodlib(?:\.[a-z_]+)*)\.(\w+)", text):
        if name != "py":
            assert hasattr(import_module(module), name), f"{module}.{name}"
