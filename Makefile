# Two commands are all a fresh clone needs: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast check
.DELETE_ON_ERROR:

demo: $(VENV)/lab.installed
	$(BIN)/svag compare digits --out demo

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses auto

test-fast: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses auto --fast

check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "svag needs Python 3.11 or newer; make PYTHON=python3.12 names one")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/lab.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	touch $@

$(VENV)/dev.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev]'
	touch $@
