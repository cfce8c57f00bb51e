# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
SOURCES := $(shell find csrc python -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt pyproject.toml

.PHONY: demo test build lint format typecheck gpu-check clean
.DELETE_ON_ERROR:

# Torch first and pinned: a plain `torch` pulls gigabytes of CUDA on Linux.
$(VENV)/.deps: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check "scikit-build-core>=0.11" "pybind11>=2.13" ninja cmake \
	  safetensors packaging scikit-learn kornia matplotlib rich pytest hypothesis ruff mypy "clang-format>=18" pre-commit torch-pruning
	touch $@

# Incremental: the build folder is kept between runs.
$(VENV)/.built: $(VENV)/.deps $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall .
	touch $@

build: $(VENV)/.built

test: build
	$(BIN)/python -m pytest

# For a machine with a GPU: uses PYTHON's own torch and downloads nothing. GPU_CHECK_ARGS=--dry-run needs no GPU.
RESULTS_DIR ?= runs/gpu-check
gpu-check:
	RESULTS_DIR="$(RESULTS_DIR)" $(PYTHON) bench/gpu_check.py $(GPU_CHECK_ARGS)

lint: $(VENV)/.deps
	$(BIN)/ruff check python tests bench
	$(BIN)/ruff format --check python tests bench
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(VENV)/.deps
	$(BIN)/ruff format python tests bench
	$(BIN)/ruff check --fix python tests bench
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

clean:
	rm -rf build runs $(VENV)
