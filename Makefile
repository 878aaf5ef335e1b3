# make setup | quickstart | demo | test | test-long | fuzz | bench | docs | lint | format | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Modules are compiled once, also where the environment says not to keep that.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

.PHONY: help setup quickstart demo test test-long fuzz bench docs lint format clean

help:
	@echo "make setup       create $(VENV) and install"
	@echo "make quickstart  the whole paper in small, offline, in 6 to 11 minutes -> runs/quickstart/report.html"
	@echo "make demo        ask its models in the browser, queries and captions; runs the quickstart first where that is not done"
	@echo "make test        install the test extra, check style, run the tests"
	@echo "make test-long   the tests that make test leaves out: the slow, then the longest randomised runs"
	@echo "make fuzz        10,000 damaged annotation files, weights and images through the readers"
	@echo "make bench       speed against PyTorch on this machine, in under 10 minutes -> runs/bench/report.md"
	@echo "make docs        the documentation, its notebooks run -> docs/_build/index.html"
	@echo "make lint        ruff check and format check, types of the public modules"
	@echo "make format      let ruff fix and format"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	# Reference libraries of the weight layouts, without torchvision, which they need for images only.
	$(PIP) install --quiet --constraint constraints.txt --no-deps open_clip_torch clip-anytorch
	touch $@

quickstart: setup
	$(BIN)/python -m quickstart --out=runs/quickstart

# On the quickstart's held-out photos. PORT=0 takes a free port.
PORT ?= 8765
demo: setup runs/quickstart/results.json
	$(PIP) install --quiet --constraint constraints.txt --editable '.[serve]'
	$(BIN)/python -m evals.search --serve --open --port=$(PORT) --model=base=runs/quickstart/base \
		--model=tuned=runs/quickstart/tuned --images=runs/quickstart/world/heldout/images \
		--out=runs/demo "a red star" "no star" "a circle but no square" "a house without a moon"

runs/quickstart/results.json:
	@echo "There is no runs/quickstart: making it, which takes 6 to 11 minutes"
	$(MAKE) quickstart

test: $(VENV)/.installed-test lint
	$(PYTEST)

test-long: $(VENV)/.installed-test
	$(PYTEST) -m 'slow and not long'
	$(PYTEST) -m long

fuzz: $(VENV)/.installed-test
	PYTHONPATH=tests $(BIN)/python -m hostile.fuzz --inputs=10000 --out=runs/fuzz

bench: $(VENV)/.installed-test
	$(BIN)/python -m bench --out=runs/bench

# The notebooks run commands of this environment. They are run again only where a cell changed;
# `make docs NOTEBOOKS=off` builds the pages without running any.
NOTEBOOKS ?= cache
docs: $(VENV)/.installed-test
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH="$(CURDIR)" $(BIN)/python -m sphinx --fail-on-warning --keep-going \
		--define nb_execution_mode=$(NOTEBOOKS) docs docs/_build

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info build .pytest_cache .ruff_cache
