# make reproduce     the whole suite on this machine, ending with the scorecard
# make lab           JupyterLab on the notebooks
# make test          the tests
# make test-browser  the notebooks in a real JupyterLab and Chromium
# make lint          ruff on code and notebooks
PYTHON ?= python3
PRESET ?= tiny
BIN := .venv/bin
AXE := axe-core@4.14.1

.PHONY: install reproduce lab test test-browser lint clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

reproduce: install
	$(BIN)/oodlib reproduce --preset $(PRESET)

lab: install
	$(BIN)/jupyter lab notebooks/

test: install lint
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-browser: install .venv/browser/installed
	$(BIN)/pytest -m browser -n 2 --dist loadfile tests/browser

.venv/browser/installed: .venv/installed .ci/browser
	.ci/browser
	$(BIN)/pip install --quiet -c constraints.txt -e ".[browser]"
	npm install --silent --prefix .venv/browser $(AXE)
	touch $@

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf .venv *.egg-info
