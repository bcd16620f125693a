# Each target does its own set-up: a virtual environment in .venv, made by the first Python of 3.11
# to 3.13 that is found (or PYTHON=...), with the dependencies of setup.py.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := $(VENV)/bin
DEMO ?= demo-output
# Processes that run tests, each with TensorFlow and Beam in memory: about 1.5 GB.
JOBS ?= 2

.PHONY: demo test bench lint types check-python

demo: $(VENV)/.installed
	$(BIN)/segclr-beam demo --output $(DEMO)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.embed
	$(BIN)/python -m benchmarks.reprocess
	$(BIN)/python -m benchmarks.commit
	$(BIN)/python -m benchmarks.storage
	$(BIN)/python -m benchmarks.access
	$(BIN)/python -m benchmarks.scale

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

check-python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found on PATH: \
	install one, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }

$(VENV)/.installed: setup.py | check-python
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@
