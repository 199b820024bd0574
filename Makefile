# Everything a person does with the project. All targets can be repeated; one .venv holds what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := worker,bitsandbytes,postgres,parquet,gguf,dev,bench,source
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(6, (os.cpu_count() or 1) + 1))')

.DEFAULT_GOAL := help
.PHONY: help setup demo models test chaos check bench format docs source clean

help:  ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## Make .venv and install everything into it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Ratchet needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "Setting up $(VENV) (once; this takes a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup  ## Train, resume and talk to a model, live in this terminal
	@$(BIN)/python -m client.demo

models: setup  ## Add a small real model to models/, to fine-tune (90 MB to fetch, 540 MB on disk)
	@$(BIN)/python -m client models add smollm2

# Most tests wait for processes of their own, so there are more workers than cores. The folders with the longest files
# come first in the alphabet, and are begun first.
test: setup  ## Run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --ignore=tests/alone --numprocesses=$(WORKERS) \
		--dist=loadfile --no-loadscope-reorder
	@$(BIN)/python -m pytest --quiet tests/alone

chaos: setup  ## Kill everything two thousand times, then see whether anything was lost (KILLS=, SEED=, about an hour)
	@$(BIN)/python -m tests.chaos --kills $(or $(KILLS),2000) $(if $(SEED),--seed $(SEED))

check: setup  ## Lint, types, contracts
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tools.build_source --check
	@$(BIN)/python -m tools.reference --check

format: setup  ## Put the code in shape
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: setup  ## Run every benchmark; one JSON row each
	@for program in benchmarks/[a-z]*.py; do $(BIN)/python $$program || exit 1; done

docs: setup  ## Write the reference pages anew
	@$(BIN)/python -m tools.reference

source: setup  ## Build the bundled training text anew
	@$(BIN)/python -m tools.build_source

clean:  ## Remove .venv and caches; data stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
