# Two commands are all a newcomer needs: `make demo` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.holdfast-ready

.PHONY: help setup demo test check format docs bars bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv from requirements.txt, with the `holdfast` command in it

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Holdfast needs Python 3.11 or newer; this is %s. Set PYTHON=python3.11 (or newer)." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## the whole main job on the built-in world, under five minutes
	$(BIN)/holdfast demo -o demo-out

test: setup  ## every test
	$(BIN)/python -m pytest -n auto --dist worksteal

check: setup  ## format, lint, types, import contracts, fast tests: under a minute
	$(BIN)/ruff format --check src tests bench
	$(BIN)/ruff check src tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

bars: setup  ## measure every bar of the project (about an hour)
	$(BIN)/python bench/bars.py all

bench: setup  ## side by side with TRL and datasets, ledger, start, two million pairs: docs/benchmarks.md (about an hour)
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/ledger.py
	$(BIN)/python bench/start.py
	$(BIN)/python bench/freeze.py
	$(BIN)/python bench/large.py
	$(BIN)/python bench/inspection.py
	$(BIN)/python bench/ope.py
	$(BIN)/python bench/page.py

docs: setup  ## the pages made from the code
	$(BIN)/python docs/make.py

format: setup  ## let ruff format and mend what it can
	$(BIN)/ruff format src tests bench
	$(BIN)/ruff check --fix src tests bench

clean:  ## remove what was built
	rm -rf $(VENV) demo-out build *.egg-info src/*.egg-info
