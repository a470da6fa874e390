# Each target makes .venv on first use and installs what it needs into it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
BASE := $(VENV)/.base-installed
DEV := $(VENV)/.dev-installed
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# The oracle of the curvature tests, without its own dependencies: they ask for torchvision, which it hardly uses.
ORACLE := curvlinops-for-pytorch

# Real data for the tests and the runs that want it: a folder beside this one, unless one is named already.
ifndef WIDEANGLE_DATA
ifneq ($(wildcard ../shared/data/.),)
export WIDEANGLE_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: help checkup test test-all lint bench docs
.DEFAULT_GOAL := help

help:
	@echo "make checkup   check up a network on the bundled digits and write report.html (base install)"
	@echo "make test      the tests, without the slow ones"
	@echo "make test-all  all tests"
	@echo "make lint      ruff and pyright"
	@echo "make bench     kernel, curvature and optimiser steps beside their peers, about an hour (BENCH=--quick: a few)"
	@echo "make docs      run the examples of README.md and docs/"

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit("wideangle needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(BASE): pyproject.toml constraints.txt | $(RUN)
	$(INSTALL) .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(RUN)
	$(INSTALL) '.[dev]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(ORACLE)
	@touch $(BASE) $@

checkup: $(BASE)
	$(VENV)/bin/wideangle checkup mlp --data digits --out report.html --json checkup.json --plan plan.json
	@echo "The report is $(CURDIR)/report.html: open it in a browser."

# One thread for each test process: the models are small, and spinning threads make a busy machine crawl.
test: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow"

test-all: $(DEV)
	OMP_NUM_THREADS=1 $(RUN) -m pytest

lint: $(DEV)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright

bench: $(DEV)
	$(RUN) benchmarks/bench_kernel.py $(BENCH)
	$(RUN) benchmarks/bench_curvature.py $(filter --quick,$(BENCH))
	$(RUN) benchmarks/bench_optim_step.py $(filter --quick,$(BENCH))

docs: $(DEV)
	$(RUN) -m pytest --doctest-glob='*.md' README.md docs
