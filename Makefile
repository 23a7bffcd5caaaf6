# Two commands for a new machine: `make demo` and `make test`. The virtual environment is made where it is missing.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
HOSTS_READY := $(VENV)/.hosts-ready
SOURCES := src tests bench tools
# Tests run two at a time; more threads than cores wait for each other longer than they work.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY) ## make the virtual environment with pinned dependencies

$(READY): constraints.txt pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "Python >= 3.11 is needed: set PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python >= 3.11 is needed; $(PYTHON) is older"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY) ## fit handwritten digits, from choosing the plan to the report
	$(BIN)/thalweg fit digits

test: $(READY) lint ## linters, types, contracts, examples of the docs, tests
	$(PYTEST) -m "not heavy"

test-all: $(HOSTS_READY) lint ## all of that and the long proofs, also inside Lightning, Accelerate and skorch
	$(PYTEST) --hypothesis-profile=search

$(HOSTS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test-hosts]"
	@touch $@

lint: $(READY) ## format, lint, types, import contracts
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(READY) ## format the sources
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

tables: $(READY) ## write the import tables from the folder listings
	$(BIN)/python tools/tables.py

docs: $(READY) ## write the rules' pages and the tables of what was measured, and run every example in them
	$(BIN)/python bench/tables.py
	$(BIN)/python tools/pages.py
	$(PYTEST) tests/test_documentation.py tests/test_pages.py tests/records/test_run_format.py

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	# Without what they ask for and nothing here uses: torchvision's builds on PyPI fail to import beside PyTorch for CPUs, and
	# XGBoost brings libraries for GPUs.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps fastai syne-tune
	@touch $@

bench: $(BENCH_READY) ## measure everything and write the tables of bench/README.md
	$(BIN)/python bench/run.py loop speed step rules resume cost memory learning holdout

bench-step: $(BENCH_READY) ## one step of an optimiser against PyTorch's
	$(BIN)/python bench/run.py step

bench-tune: $(BENCH_READY) ## what the search chooses, against 200 random trials and peers; hours, stages resume
	OMP_NUM_THREADS=1 $(BIN)/python bench/tuning/oracle.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/tuning/peers.py
	$(BIN)/python bench/tuning/summary.py --write
	$(BIN)/python bench/tables.py

bench-watch: $(BENCH_READY) ## what the watch names, cures and costs, on programs with a known fault; hours, stages resume
	OMP_NUM_THREADS=1 $(BIN)/python bench/watch/runs.py off twins
	$(BIN)/python bench/watch/gaps.py
	OMP_NUM_THREADS=1 $(BIN)/python bench/watch/runs.py train cured closure bare
	$(BIN)/python bench/watch/summary.py --write
	OMP_NUM_THREADS=1 $(BIN)/python bench/watch/cost.py --write
	$(BIN)/python bench/tables.py

bench-landscape: $(BENCH_READY) ## eigenvalues, surfaces and densities beside other libraries
	OMP_NUM_THREADS=1 $(BIN)/python bench/run.py landscape basins fit_survey

bench-resume: $(BENCH_READY) ## restart time and bytes of a checkpoint
	$(BIN)/python bench/run.py resume

bench-check: $(READY) ## fail where bench/README.md differs from the raw figures
	$(BIN)/python bench/tables.py --check

clean: ## remove what the other targets made
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help setup demo test test-all lint format tables docs bench bench-step bench-tune bench-watch bench-landscape bench-resume bench-check clean
