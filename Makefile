# `make demo` and `make test` set up .venv from requirements/cpu.lock by themselves where there is none.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The page of PyTorch's CPU wheels, if your pip does not know them: make demo TORCH_INDEX_URL=...
TORCH_INDEX_URL ?=
TORCH := 2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test test-slow lint types clean

setup: $(STAMP)

$(STAMP): requirements/cpu.lock pyproject.toml
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; assert v == (3, 11), f'Python 3.11 is pinned, found {v}'"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch $(TORCH), CPU build"
	$(PIP) $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --no-deps torch==$(TORCH)+cpu || { \
	  echo "no CPU build of torch in pip's index: taking the default build (several GB; TORCH_INDEX_URL avoids it)"; \
	  $(PIP) torch==$(TORCH); }
	@echo "installing the pinned stack"
	$(PIP) --no-deps -r requirements/cpu.lock
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m caopd_verl.demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf outputs build dist .pytest_cache .mypy_cache .ruff_cache
