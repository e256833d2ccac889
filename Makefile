# `make demo` and `make test` set everything up; both use .venv, which the first one creates. `make help` lists the rest.
PYTHON ?= python3
PIP_ARGS ?=
UV_ARGS ?=
RECIPE ?= demo
# pytest keeps its rewritten tests in there, which is ten seconds of a minute's `make check`
unexport PYTHONDONTWRITEBYTECODE
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt
OLDEST := .venv-oldest/bin

.PHONY: help demo up down check test test-oldest lint golden fuzz bench chaos chaos-cluster docs pictures release clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/demo  ## build a model from the demo corpus and show it
	$(BIN)/qalam build demo

up: .venv/demo  ## a local stack: Prefect server, deployments of the demo recipe (or RECIPE=), one worker
	$(BIN)/qalam up $(RECIPE)

down:  ## stop what `make up` started, and nothing else
	$(BIN)/qalam down

check: .venv/test  ## in a minute: linters, types, and every test that starts no process
	@$(MAKE) --no-print-directory lint & \
	$(BIN)/python -m pytest -q -n 2 -m "not processes"; tests=$$?; \
	wait $$! && exit $$tests

test: export QALAM_EXAMPLES = 100  # of each property, where `make check` tries 25
test: export QALAM_QUICK_SECONDS = 10  # `make check` is strict; here the machine may be slow, or busy
test: .venv/test  ## linters, types and every test
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 4  # more workers than cores: those on a stack mostly wait

lint: .venv/test  ## linters and types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test-oldest: .venv-oldest/ready  ## a build and the quick tests with the lowest versions that pyproject.toml allows
	$(OLDEST)/python -m pytest -q -n 2 -m "not processes"
	store=$$(mktemp -d); QALAM_STORE=$$store $(OLDEST)/qalam build demo --set train.steps=20; \
	ls $$store/runs/demo-*/report.html  # the gate refused it, which is the same status as that of a traceback

golden: .venv/test  ## rewrite tests/golden and docs/conformance after an intended change
	QALAM_GOLDEN=rewrite $(BIN)/python -m pytest -p no:randomly tests/pipeline/test_golden.py
	$(BIN)/python -m tests.conformance

fuzz: .venv/test  ## mutate weights files for a minute: the reader must refuse them, or agree with Python
	$(PIP) --editable ".[fuzz]"
	$(BIN)/python -m tests.fuzz_reader -max_total_time=60

bench: .venv/test  ## every benchmark against its stated targets
	set -e; for file in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$file .py) --check; done

chaos: .venv/test  ## fifty builds under kill -9, full disks and concurrent builds: no damage, no difference
	$(BIN)/python -m benchmarks.chaos --check

chaos-cluster: .venv/test  ## fifty builds on two machines that share an object storage, which fails: the same
	$(BIN)/python -m benchmarks.bench_object_store --chaos --check

docs: .venv/test  ## build the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

pictures: .venv/demo  ## take the README's pictures again: a report, and a run in Prefect's UI; needs chromium
	$(BIN)/python docs/pictures/make.py

release: .venv/test  ## release the version of qalam_core/package/runtime/__init__.py; with ARGS=--dry-run, try it
	$(BIN)/python .ci/release.py $(ARGS)

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (about two minutes; most of it is torch)"
	$(PIP) --editable ".[demo]"
	@touch $@

.venv/test: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv (about two minutes; most of it is torch)"
	$(PIP) --editable ".[demo,test]"
	@touch $@ .venv/demo

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("al-qalam needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# uv, because pip cannot prefer low versions; PyPI's torch for Linux brings 3 GB of CUDA libraries
.venv-oldest/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv-oldest
	$(OLDEST)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) uv
	$(OLDEST)/uv pip install --quiet --python $(OLDEST)/python --resolution lowest-direct $(UV_ARGS) --editable ".[demo,test]"
	@touch $@

clean:  ## remove what the other targets made, except the models in .qalam
	rm -rf .venv .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .grimp_cache .hypothesis
