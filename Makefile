# Everything from a fresh clone: `make demo` shows the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test quick check format docs tutorials

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

demo: install
	$(BIN)/finetune demo
	$(BIN)/fewshot demo

# A process a core, and a thread a process: several threads that wait for each other at every step cost far more.
test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile

# The answer of the inner loop: every test that takes less than half a second of CPU.
quick: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, offline, in build/docs; a warning is an error. `make tutorials` runs the tutorials first.
docs: install .venv/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

tutorials: install .venv/.docs
	OMP_NUM_THREADS=1 FEWTUNE_TUTORIALS=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

.venv/.docs: pyproject.toml
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
