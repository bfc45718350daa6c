# Every target does its own set-up: a fresh machine needs only Python >= 3.11 with venv, and make.
#
#   make demo         verify two small networks: one true `sat`, one true `unsat`
#   make test         linters and the quick tests (what continuous integration runs)
#   make test-full    everything, the long tests and the strict documentation build included
#   make docs         build the documentation into site/
#   make tables       write the generated tables into README.md and docs/
#
#   PYTHON=python3.12                                       another interpreter for .venv
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu        where to look for torch as well (a small CPU build)
#   WORKERS=8                                               test processes, each with one thread

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA := tests/data
export OMP_NUM_THREADS = 1
export MKL_NUM_THREADS = 1

.PHONY: demo test test-full lint types docs tables setup clean
.DEFAULT_GOAL := test

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	@echo "== an input near a digit that is classified differently: the counterexample is printed"
	$(BIN)/verifier verify $(DATA)/digits_mlp.onnx $(DATA)/digits_mlp_sat.vnnlib --timeout 60
	@echo "== no such input exists near another digit: proved"
	$(BIN)/verifier verify $(DATA)/digits_mlp.onnx $(DATA)/digits_mlp_unsat.vnnlib --timeout 60

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/pyright

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not full"

test-full: lint types docs
	$(BIN)/python -m pytest -q -n $(WORKERS)

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tables: $(STAMP)
	$(BIN)/python -m verifier.report.tables

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
