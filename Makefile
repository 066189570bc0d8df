# Everything runs in .venv, which sets itself up from pyproject.toml and constraints.txt and is redone when they change.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.PHONY: help setup demo test test-all lint bench bench-gpu clean

# PYTHON=... chooses the interpreter of a new .venv; otherwise the first that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# -P below: at the root, Python would take our link `sched` for the standard library's module of that name.
PY := .venv/bin/python
# The directory is part of the key because an editable install remembers where it was made.
KEY := $(shell { cat pyproject.toml constraints.txt; pwd; } | cksum | cut -d' ' -f1)
READY := .venv/.ready-$(KEY)

help: ## list these commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## set up .venv (the other commands do it by themselves)

$(READY): pyproject.toml constraints.txt
	@$(PY) -m pip --version >/dev/null 2>&1 || test -n "$(PYTHON)" || { \
		echo "make: no Python 3.11 or newer with venv on PATH; install one (Debian: apt-get install python3 python3-venv) or set PYTHON=" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	@echo "installing what pyproject.toml names into .venv (about a minute the first time)"
	@$(PY) -m pip install --quiet --editable '.[dev,train]' --constraint constraints.txt
	@rm -f .venv/.ready-* && touch $@

demo: $(READY) ## the main job: LSTM-80 and a short training run, wolong against eager
	$(PY) -P -m wolong_fx.train.demo

test: $(READY) ## the tests, a few minutes; a C++ compiler must be there
	$(PY) -P -m pytest -n 2 -q -m 'not slow' --must-have cpu

test-all: $(READY) ## the tests with the slow ones (ThreadSanitizer, long kill -9 loops)
	$(PY) -P -m pytest -n 2 -q --must-have cpu

lint: $(READY) ## ruff, pyright and the import contract
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(PY) -m pyright
	.venv/bin/lint-imports

bench: $(READY) ## the benchmarks, one after another (an hour), results as JSON in runs/bench/
	@$(PY) -m pip install --quiet --editable '.[bench]' --constraint constraints.txt
	@mkdir -p runs/bench
	@for f in benchmarks/*.py; do name=$$(basename $$f .py); \
		echo "== $$name"; $(PY) -P $$f --json > runs/bench/$$name.json && cat runs/bench/$$name.json || exit 1; done

# On a machine whose own Python has torch for its GPU and wolong_fx: make bench-gpu GPU_PYTHON=python3
bench-gpu: $(if $(GPU_PYTHON),,$(READY)) ## every GPU figure, into benchmarks/results/gpu/ (ARGS="--quick --budget-s 540")
	@$(or $(GPU_PYTHON),$(PY)) -P benchmarks/gpu/all.py $(ARGS)

clean: ## remove .venv and what tools left behind
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis
