# Everything a newcomer types. Each target does the set-up itself on a fresh machine.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
OUT    ?= demo

.PHONY: install demo test soak bench lint format clean

install: $(STAMP)

# Reinstalled only when the dependencies change: a second call takes no time.
$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

demo: install
	$(PY) -m jobs.demo --out $(OUT)

# Quick tests first, two processes at a time, so that a mistake shows early; then those that start a Ray of their own.
test: install
	$(PY) -m pytest -q -n 2 --dist loadfile --durations 15 -m "not soak and not ray and not gpu"
	$(PY) -m pytest -q --durations 15 -m "ray and not soak and not gpu"

soak: install
	$(PY) -m pytest -q -m soak --timeout 3600

bench: install
	$(PY) -m benchmarks.run
	$(PY) -m benchmarks.decoding
	$(PY) -m benchmarks.capacity
	$(PY) -m benchmarks.training

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(OUT) build .pytest_cache .mypy_cache .ruff_cache
