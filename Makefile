# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python >= 3.10 and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
# Where there is no GPU the CUDA library is left out: the emulator runs its kernels, and test-codegen compiles them.
CUDA ?= $(if $(wildcard /dev/nvidiactl),AUTO,OFF)
BIN := $(VENV)/bin
OP_TESTS := tests/test_quantize_rows.py tests/test_int8_mm.py tests/test_int8_linear.py tests/test_int8_static.py tests/test_int8_weight_only_linear.py tests/test_binary_coded_linear.py tests/test_binary_coded_gradients.py tests/test_binary_coded_format.py tests/test_sparse_linear.py \
  tests/test_sparse_linear_input.py tests/test_int8_sparse_linear.py tests/test_fused_dropout.py \
  tests/test_fused_dropout_mask.py tests/test_fused_dropout_norm.py tests/test_philox.py tests/test_formats.py tests/test_int8_conv2d.py \
  tests/test_sparse_conv2d.py tests/test_block_sparse_linear.py tests/test_semi_sparse_linear.py tests/test_block_formats.py \
  tests/test_block_layers.py tests/test_ising.py tests/test_int8_semi_sparse_linear.py
# Op tests that the kernels of every backend pass: CUDA's on the emulator and Triton's in its interpreter too. For the
# last one there is no Triton kernel.
BACKEND_TESTS := tests/test_quantize_rows.py tests/test_int8_mm.py tests/test_int8_linear.py tests/test_int8_static.py \
  tests/test_int8_weight_only_linear.py tests/test_binary_coded_linear.py tests/test_binary_coded_gradients.py \
  tests/test_sparse_linear.py tests/test_sparse_linear_input.py tests/test_int8_sparse_linear.py tests/test_fused_dropout.py \
  tests/test_fused_dropout_mask.py tests/test_fused_dropout_norm.py tests/test_block_sparse_linear.py \
  tests/test_semi_sparse_linear.py tests/test_int8_semi_sparse_linear.py
# And those that take other kernels on devices before Hopper.
EMULATED_TESTS_80 := tests/test_int8_mm.py tests/test_int8_linear.py tests/test_int8_static.py
SOURCES := $(shell find csrc python -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt pyproject.toml

.PHONY: demo build test test-emulated test-interpret test-codegen gpu-check figures quality test-isa test-long test-install test-wheel asan bench plot lint format hooks clean
.DELETE_ON_ERROR:

# Torch first and pinned: a plain `torch` pulls gigabytes of CUDA on Linux.
$(VENV)/.deps: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check "scikit-build-core>=0.11" "pybind11>=2.13" ninja cmake \
	  safetensors packaging scikit-learn kornia matplotlib rich pytest hypothesis ruff mypy "clang-format>=18" pre-commit torch-pruning constriction accelerate
# Triton 3.6's interpreter needs numpy < 2.4. Where there is no Triton, what needs it says so and passes.
	-test "$$(uname -sm)" != "Linux x86_64" || $(BIN)/pip install --quiet --disable-pip-version-check $(TRITON) "numpy<2.4"
	touch $@

# Incremental: the build folder is kept between runs.
$(VENV)/.built: $(VENV)/.deps $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
	  --config-settings=cmake.define.BIGMODEL_EMULATE=ON --config-settings=cmake.define.BIGMODEL_CUDA=$(CUDA) .
	touch $@

build: $(VENV)/.built

# The main job: a teacher is trained, compressed, saved, reloaded and checked; then the table and where the report is.
demo: build
	$(BIN)/bigmodel compress --task digits --max-drop 0.01 --out runs/digits

demo-seeds: build
	$(BIN)/python bench/five_seeds.py

test: build test-emulated test-interpret
	$(BIN)/python -m pytest -m "not long"

# The CUDA kernels without a GPU: their own sources, compiled for the emulator (csrc/emulator).
test-emulated: build
	BIGMODEL_BACKEND=emulated $(BIN)/python -m pytest -m "not long" $(BACKEND_TESTS)
	BIGMODEL_BACKEND=emulated BIGMODEL_EMULATED_ARCHITECTURE=80 $(BIN)/python -m pytest -m "not long" $(EMULATED_TESTS_80)

# Triton's kernels without a GPU, in its interpreter, at small sizes.
test-interpret: build
	if $(BIN)/python -c "import triton"; then \
	  TRITON_INTERPRET=1 BIGMODEL_BACKEND=triton OMP_NUM_THREADS=1 $(BIN)/python -m pytest -W ignore -m "not long" $(filter-out tests/test_int8_semi_sparse_linear.py,$(BACKEND_TESTS)) tests/test_triton.py; \
	else echo "test-interpret: triton can't be had on this platform, nothing is tested"; fi

# What nvcc and Triton make of all kernels for all architectures; skipped, with the reason, where they are not found.
test-codegen: build
	$(BIN)/python -m pytest -rs tests/test_codegen_*.py

# Everything again with each instruction set as the process's own, as a user would force it.
test-isa: build
	for isa in $$($(BIN)/python -c "from bigmodel_ext import _native; print(*_native.available_isas())"); do \
	  echo "BIGMODEL_ISA=$$isa" && BIGMODEL_ISA=$$isa $(BIN)/python -m pytest -m "not long" $(OP_TESTS) || exit 1; done

test-long: build
	$(BIN)/python -m pytest

# `pip install .` as a user runs it: build isolation, a new environment that has torch and nothing else.
test-install: $(VENV)/.deps
	rm -rf build/install-venv && $(PYTHON) -m venv build/install-venv
	build/install-venv/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	time build/install-venv/bin/pip install --disable-pip-version-check .
	cd build && install-venv/bin/python -c "import bigmodel_ext; print('bigmodel_ext', bigmodel_ext.__version__, 'imports')"

# One wheel for every torch: the wheel built here passes the op tests beside another torch (OTHER_TORCH, e.g. torch==2.10.0).
OTHER_TORCH ?= torch==2.10.0
OTHER_VENV ?= build/other-venv
test-wheel: $(VENV)/.deps
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir dist .
	test -d $(OTHER_VENV) || $(PYTHON) -m venv $(OTHER_VENV)
	$(OTHER_VENV)/bin/pip install --quiet --disable-pip-version-check $(OTHER_TORCH) numpy safetensors packaging pytest hypothesis
	$(OTHER_VENV)/bin/pip install --quiet --disable-pip-version-check --no-index --no-deps --force-reinstall dist/*.whl
	$(OTHER_VENV)/bin/python -c "import torch; print('torch', torch.__version__)"
	$(OTHER_VENV)/bin/python -m pytest -m "not long" $(OP_TESTS)

# The op tests on an AddressSanitizer + UndefinedBehaviorSanitizer build; leaks are the interpreter's own. What the
# sanitizers say before they end the process goes straight to standard error, which pytest must not hold back. The CUDA
# kernels too, on the emulator: their accesses beyond tensors and shared variables are told with the kernel's line.
ASAN := PYTHONPATH=build/asan-site ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)"
asan: $(VENV)/.deps
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --upgrade --target build/asan-site \
	  --config-settings=cmake.define.BIGMODEL_SANITIZE=ON --config-settings=cmake.define.BIGMODEL_CUDA=OFF \
	  --config-settings=cmake.define.BIGMODEL_EMULATE=ON \
	  --config-settings=build-dir=build/asan .
	$(ASAN) $(BIN)/python -m pytest --capture=sys -m "not long" -k "not compile" $(OP_TESTS)
	$(ASAN) BIGMODEL_BACKEND=emulated $(BIN)/python -m pytest --capture=sys -m "not long" -k "not compile" $(BACKEND_TESTS)
	$(ASAN) $(BIN)/python -m pytest --capture=sys -m "not long" tests/emulator

# What `make bench` compares with; not needed by anything else.
$(VENV)/.peers: $(VENV)/.deps
	$(BIN)/pip install --quiet --disable-pip-version-check onnx onnxruntime torchao transformers matplotlib
	touch $@

# Nothing else may run meanwhile. BENCH_ARGS="int8 --full" for other suites and sizes.
bench: build $(VENV)/.peers
	$(BIN)/bigmodel bench --out bench/results $(BENCH_ARGS)

# PNGs and the README's tables, from the rows that `make bench` wrote.
plot: build $(VENV)/.peers
	$(BIN)/bigmodel bench --plot --out bench/results

figures: build
	$(BIN)/python -m bench.readme

# Accuracy, size and error against peers, minutes a section: QUALITY_ARGS="oneshot structural". Only HQQ's solver is used.
quality: build $(VENV)/.peers
	$(BIN)/pip install --quiet --disable-pip-version-check termcolor
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation hqq
	$(BIN)/python -m bench.quality $(QUALITY_ARGS)

# For a machine with a GPU: uses PYTHON's own torch and downloads nothing. GPU_CHECK_ARGS=--dry-run needs no GPU.
RESULTS_DIR ?= runs/gpu-check
gpu-check:
	RESULTS_DIR="$(RESULTS_DIR)" $(PYTHON) bench/gpu_check.py $(GPU_CHECK_ARGS)

lint: $(VENV)/.deps
	$(BIN)/ruff check python tests bench examples
	$(BIN)/ruff format --check python tests bench examples
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy

format: $(VENV)/.deps
	$(BIN)/ruff format python tests bench examples
	$(BIN)/ruff check --fix python tests bench examples
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

hooks: $(VENV)/.deps
	$(BIN)/pre-commit install

clean:
	rm -rf build dist runs $(VENV)
