# Two commands set everything up: `make demo` and `make test`. Both use .venv, which the first one creates.
PYTHON ?= python3
PIP_ARGS ?=
RECIPE ?= demo
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt

.PHONY: demo up down test lint golden fuzz bench chaos clean

demo: .venv/demo  ## build a model from the demo corpus and show it
	$(BIN)/qalam build demo

up: .venv/demo  ## a local stack: Prefect server, deployments of the demo recipe, one worker
	$(BIN)/qalam up $(RECIPE)

down:  ## stop what `make up` started, and nothing else
	$(BIN)/qalam down

test: .venv/test  ## every test and every linter
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n 3  # two cores: the deployment tests mostly wait

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: .venv/test  ## rewrite tests/golden after a change that is meant
	QALAM_GOLDEN=rewrite $(BIN)/python -m pytest -p no:randomly tests/pipeline/test_golden.py

fuzz: .venv/test  ## mutate weights files for a minute: the reader must refuse, or agree with Python
	$(PIP) --editable ".[fuzz]"
	$(BIN)/python -m tests.fuzz_reader -max_total_time=60

bench: .venv/test  ## every benchmark against its stated targets
	set -e; for file in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$file .py) --check; done

chaos: .venv/test  ## fifty builds under kill -9, full disks and rivals: what is damaged, what differs
	$(BIN)/python -m benchmarks.chaos --check

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

clean:  ## what the commands above made, but for the models in .qalam
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
