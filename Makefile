# Everything from a fresh clone: `make demo` shows the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

demo: install
	$(BIN)/finetune demo
	$(BIN)/fewshot demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
