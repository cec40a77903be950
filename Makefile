# Everything runs in a virtual environment of its own, made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: test slow lint bench clean

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev,tensorboard]'
	touch $@

test: lint  ## lint, types and the whole suite but what is marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile  # a file at a time on each core

slow: $(READY)  ## the tests that take too long for every commit
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## the two figures of the README: the loop and the views
	$(BIN)/python scripts/bench_views.py
	$(BIN)/python scripts/bench_loop.py

clean:
	rm -rf $(VENV) build dist *.egg-info
