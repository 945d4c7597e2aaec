# The targets that a newcomer needs; `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEBIAN_PACKAGES := chromium chromium-driver postgresql g++ python3-dev dataset-fashion-mnist fonts-noto-core fonts-noto-cjk
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.DEFAULT_GOAL := help
.PHONY: help install quickstart ui docs test test-full lint bench gpu faults determinism notebooks debian

help:  ## This list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

install: $(INSTALLED)  ## Install into .venv

quickstart: $(INSTALLED)  ## Install, train LeNet-5 on digits with three seeds, compare it with its ensemble
	$(BIN)/lit-cnn fit --config lenet5_scratch_digits_crops --seeds 0 1 2
	$(BIN)/lit-cnn ensemble --experiment digits --filter "attributes.run_name = 'lenet5_scratch_digits_crops'" --top_k 3 --views 1 5
	@echo "Look at the runs in your browser: make ui"

ui: $(INSTALLED)  ## Open MLflow on 127.0.0.1 and print the links to the runs
	$(BIN)/lit-cnn ui

docs: $(INSTALLED)  ## The documentation as a site, docs/_build/index.html; warnings are errors
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . docs/_build
	@echo "Open docs/_build/index.html in your browser."

test: $(INSTALLED)  ## The quick tests
	$(BIN)/python -m pytest -m "not slow and not debian" -n 2 --dist worksteal

test-full: debian $(INSTALLED)  ## Every test; installs the Debian packages they need
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED)  ## One measurement: make bench NAME=… (a file in tests/benchmarks); writes tests/benchmarks/results
	@test -n "$(NAME)" || { echo "make bench NAME=…: give one of" $(filter-out common,$(basename $(notdir $(wildcard tests/benchmarks/[a-z]*.py)))); exit 2; }
	$(BIN)/python -m tests.benchmarks.$(NAME)

gpu: $(INSTALLED)  ## What there is to measure on a GPU, in eight minutes: make gpu TIMM=train.py (of timm's repository)
	$(BIN)/python -m tests.benchmarks.gpu $(if $(TIMM),--timm $(TIMM))

faults: $(INSTALLED)  ## Kill training runs, take their tracking server away; compare what comes out; half an hour
	$(BIN)/python -m tests.faults

determinism: $(INSTALLED)  ## Train the same run with 0 to 4 workers, in two precisions; compare bit for bit
	$(BIN)/python -m tests.determinism

notebooks: $(INSTALLED)  ## Run the experiments of notebooks/; hours, if none of their runs is there yet
	for book in notebooks/*.ipynb; do $(BIN)/jupyter-execute --inplace --timeout=-1 $$book || exit; done

debian:
	$(SUDO) apt-get update
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(DEBIAN_PACKAGES)

# pip is what venv makes last: an environment cut short is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lit_cnn needs Python 3.11 or later: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv

# The stamp comes last, so a broken install is tried again.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing into .venv; torch with its CUDA libraries takes about 6 GB."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
