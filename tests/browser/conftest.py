"""Fixtures of the browser tests: JupyterLab, copies of the notebooks, Chromium. Run by make test-browser."""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import papermill
import pytest
from driving import Lab

from oodlib import STAGES, Run, ensure
from oodlib.cli.execute import NOTEBOOKS, STAGE_NOTEBOOKS
from oodlib.config import CHECKOUT, load_config

TOOLS = CHECKOUT / ".venv" / "browser"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-gpu"]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on copies of the notebooks, with the outputs that they link to beside them."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "work" / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (folder / "work" / "outputs").symlink_to(CHECKOUT / "outputs")
    lab = Lab(folder)
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def small(lab):
    """The folder of copies that have the parameters of a small run that forgets; it is done, checkpoints and all."""
    copies = lab.work / "small"
    forgetting = {
        "sft": {"steps": 60, "checkpoints": [0, 6, 60]},
        "rl": {"starts": [60]},
        "out": str(lab.work.parent / "run"),
    }
    run = Run(load_config("smoke", forgetting))
    for stage in STAGES:
        ensure(run, stage)
    copies.mkdir()
    for path in NOTEBOOKS.glob(STAGE_NOTEBOOKS):
        parameters = {"preset": "smoke", **forgetting}
        papermill.execute_notebook(path, copies / path.name, parameters, prepare_only=True, progress_bar=False)
    return copies


@pytest.fixture(scope="session")
def chromium():
    """The Chromium of the system, driven by Playwright."""
    from playwright.sync_api import sync_playwright  # late: make test does without

    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert found, f"none of {', '.join(CHROMIUM)} is on PATH: make test-browser installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, lab):
    """An empty page. `faults` holds what its console calls an error, `outside` the requests to anywhere else."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.faults, page.outside = [], []

    def refuse(route):
        page.outside.append(route.request.url)
        route.abort()

    def hear(message):
        if message.type == "error":
            page.faults.append(f"{message.text} ({message.location.get('url')})")

    context.route(lambda url: urlsplit(url).hostname != "127.0.0.1", refuse)
    page.on("console", hear)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    context.close()
    lab.end_kernels()


@pytest.fixture(scope="session")
def artefacts():
    """Where screenshots are kept: $ARTEFACTS, or .venv/browser/artefacts."""
    folder = Path(os.environ.get("ARTEFACTS") or TOOLS / "artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core."""
    path = TOOLS / "node_modules" / "axe-core" / "axe.min.js"
    assert path.exists(), "axe-core is missing: make test-browser installs it"
    return path.read_text()
