# Two commands are all a fresh clone needs: `make demo` and `make test`. `make docs` builds the site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-jax test-versions test-integrations check docs linkcheck release
.DELETE_ON_ERROR:

demo: $(VENV)/lab.installed
	$(BIN)/svag compare digits --out demo

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses auto

test-fast: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses auto --fast

# svag.jax: jax, optax and flax in an environment of their own, which `make test` needs not have.
test-jax:
	$(PYTHON) -m venv $(VENV)-jax
	$(VENV)-jax/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev,jax]' flax
	$(VENV)-jax/bin/python -m pytest tests/svag_jax tests/bench/test_jax_step.py tests/test_names_elsewhere.py tests/test_docs.py

# The oldest torch that is claimed, one between and the newest: gigabytes each, and half an hour.
# `make test-versions PYTHON=python3.13` tries another Python.
VERSIONS ?= 2.9.1 2.11.0 2.15.0
test-versions: $(VERSIONS:%=test-torch-%)

test-torch-%:
	$(PYTHON) -m venv $(VENV)-torch-$*
	$(VENV)-torch-$*/bin/python -m pip install --quiet torch==$* --editable '.[lab,dev]'
	$(VENV)-torch-$*/bin/python -m pytest --numprocesses auto

# Trainers of other packages, with the real packages in an environment of their own; writes docs/trainers.md.
test-integrations:
	$(PYTHON) -m venv $(VENV)-integrations
	$(VENV)-integrations/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev,hf,lightning,timm]' trl keras
	$(VENV)-integrations/bin/python -m pytest tests/integrations --junitxml=build/integrations.xml
	$(VENV)-integrations/bin/python docs/make_trainers.py build/integrations.xml

# Both archives, every extra in a clean environment of each Python, the tests of the source archive: see release/README.md.
PYTHONS ?= $(PYTHON)
release:
	$(PYTHON) release/try_install.py --tests $(PYTHONS:%=--python %)

check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Warnings are errors; nothing is downloaded while it builds. Open build/site/index.html.
docs: $(VENV)/docs.installed
	$(BIN)/sphinx-build -W --keep-going -j auto docs build/site
	$(BIN)/python docs/check_links.py build/site

# Asks every address that the pages link to, so it needs the network.
linkcheck: $(VENV)/docs.installed
	$(BIN)/sphinx-build -b linkcheck -D plot_gallery=0 docs build/linkcheck

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "svag needs Python 3.11 or newer; make PYTHON=python3.12 names one")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/lab.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	touch $@

$(VENV)/dev.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev]'
	touch $@

$(VENV)/docs.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@
