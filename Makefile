# `make demo` and `make test` do all their set-up themselves. PYTHON= chooses the interpreter.

SHELL := /bin/sh
ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p $(ENOUGH) 2>/dev/null; then echo $$p; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo run test test-all check docs pictures format coverage dist test-extras bench clean

help:
	@echo "make demo      send two programs requests and orders, and SIGTERMs, show what happened"
	@echo "make run       run the first program in the foreground (end it with Ctrl-C)"
	@echo "make test      run the tests"
	@echo "make test-all  run all tests, the slow ones too, on every Python found (3.11, 3.12, 3.13)"
	@echo "make check     lint, types and the build of the documentation"
	@echo "make docs      the documentation as a site, in docs/_build/html"
	@echo "make pictures  those of the documentation anew"
	@echo "make coverage  the branches of the core that no test takes"
	@echo "make dist      the sdist and the wheel, in dist/"
	@echo "make test-extras  each extra, and the tutorial, in a fresh environment (asks a package index)"
	@echo "make bench     the benchmarks"

$(VENV)/.ready: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found: give one with PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || { echo "$(PYTHON) lacks ensurepip (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(or $(EXTRA),test)]'
	touch $@

$(VENV)/.dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

# Without what the benchmarks compare with they leave it out, and say so.
$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' || \
		echo "not all of the extra bench could be installed" >&2
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/demo_orders.py

run: $(VENV)/.ready
	$(BIN)/python examples/morning_evening.py

# Most tests wait for something most of the time.
test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 4

test-all:
	@sh tests/on_every_python.sh

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/test_typing.py tests/test_packaging.py \
		tests/test_docs_build.py

# All pages anew (-E): of one that is as it was, Sphinx would not repeat a warning.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -E -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

pictures: $(VENV)/.ready
	$(BIN)/python docs/pictures.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.ready
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --omit='*/adapters/*,*/_aio_*,*/_child*,*/process.py,*/periodic.py,*/sockets.py'

dist: $(VENV)/.dev
	rm -rf dist build
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

test-extras: $(VENV)/.ready
	$(BIN)/python -m pytest tests/extras.py

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-* .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist docs/_build *.egg-info
