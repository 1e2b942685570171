"""Every notebook, opened in JupyterLab as committed and run by its menu."""

import pytest
from driving import Notebook

from oodlib.analysis.plan import Plan
from oodlib.analysis.sweep import Sweep
from oodlib.cli.execute import NOTEBOOKS

pytestmark = pytest.mark.browser

PHASES = {"05": ("sweep", "confirm"), "06": ("mitigations", "search")}  # these need at least one measured cell


def measured(name):
    plan, phase = PHASES.get(name[:2], (None, None))
    return not phase or Sweep(Plan(plan)).begun(phase)


NAMES = [p.name for p in sorted(NOTEBOOKS.glob("*.ipynb")) if measured(p.name)]
DRAWS_NOTHING = "00_task_and_base.ipynb"  # it shows tables and a widget
TIMED, FIRST_FIGURE_S = "01_sft_curve.ipynb", 60  # from the start of the server
LIMIT_S = 180
BROKEN_IMAGES = "[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_through_in_jupyterlab(name, page, lab, artefacts, capsys):
    notebook = Notebook(page, lab, lab.work / "notebooks" / name)
    notebook.run_all()
    if name == TIMED:
        waited = lab.start_s + notebook.first_figure(FIRST_FIGURE_S)
        with capsys.disabled():
            print(f"\nserver up in {lab.start_s:.1f} s, first figure of {name} on the screen after {waited:.1f} s")
        assert waited <= FIRST_FIGURE_S
    notebook.finish(LIMIT_S)
    notebook.photograph(artefacts / f"{name[:2]}.png")
    assert not notebook.errors()
    assert name == DRAWS_NOTHING or notebook.figures.count()
    assert not page.evaluate(BROKEN_IMAGES)
    assert not page.faults
    assert not page.outside
