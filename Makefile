# `make demo` and `make test` do all their set-up themselves. PYTHON= chooses the interpreter.

SHELL := /bin/sh
ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if $$p $(ENOUGH) 2>/dev/null; then echo $$p; break; fi; done)
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo run test test-all check format coverage bench clean

help:
	@echo "make demo      send two programs requests and orders, and SIGTERMs, show what happened"
	@echo "make run       run the first program in the foreground (end it with Ctrl-C)"
	@echo "make test      run the tests"
	@echo "make test-all  run all tests, the slow ones too, on every Python found (3.11, 3.12, 3.13)"
	@echo "make check     lint and types"
	@echo "make coverage  the branches of the core that no test takes"
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

test: $(VENV)/.ready
	$(BIN)/python -m pytest

test-all:
	@sh tests/on_every_python.sh

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_typing.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.ready
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest -q
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report --omit='*/adapters/*,*/_aio_*,*/_child*,*/process.py,*/periodic.py,*/sockets.py'

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-* .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
