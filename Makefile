# Everything from a fresh clone: `make demo` shows the main job, `make test` passes the tests.
PYTHON ?= python3
# Windows has other names for the same.
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# The extras that tests use.
TESTED := app,explain,export,lance,lance-ray,ray,search,tensorboard

.PHONY: install demo test quick check format docs docs-check tutorials lowest build

install: .venv/.installed

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(TESTED)]' --group dev
	touch $@

demo: install
	$(BIN)/finetune demo
	$(BIN)/fewshot demo

# A process a core, and a thread a process: several threads that wait for each other at every step cost far more. One
# process more than cores took a fifth longer.
test: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile

# The answer of the inner loop: every test that takes less than half a second of CPU.
quick: install
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# The same with the lowest version of every dependency that pyproject.toml allows.
lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv-lowest/bin/python -m pytest -n auto --dist loadfile -m "not slow"

.venv-lowest/.installed: pyproject.toml .ci/lowest.py
	$(PYTHON) -m venv --clear .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[$(TESTED)]' --group test
	touch $@

# The sdist and the wheel, in dist. Their test is one of `make test`.
build: install
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m pytest tests/packaging

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation, offline, in build/docs; a warning is an error. `make tutorials` runs the tutorials first.
docs: install .venv/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# The same in a browser: accessibility, widths, pictures, the search without a network.
docs-check: docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_site.py

tutorials: install .venv/.docs
	OMP_NUM_THREADS=1 FEWTUNE_TUTORIALS=1 $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

.venv/.docs: pyproject.toml
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
