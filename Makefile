# make reproduce   the whole suite on this machine, ending with the scorecard
# make lab         JupyterLab on the notebooks
# make test        the tests
# make lint        ruff on code and notebooks
PYTHON ?= python3
PRESET ?= tiny
BIN := .venv/bin

.PHONY: install reproduce lab test lint clean

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
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

clean:
	rm -rf .venv *.egg-info
