# From a bare clone: `make demo` shows what this is, `make test` shows that it works.
# Needs Python 3.10 or newer, a C++ compiler and a package index; uses a GPU and nvcc where there are any.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Which torch. Without a GPU, a version with a CPU-only wheel is preferred where the index offers one: it spares gigabytes of
# CUDA libraries. Any pip arguments will do: make demo TORCH="torch==2.11.0 --index-url ..."
ifeq ($(shell command -v nvidia-smi),)
TORCH ?= torch==2.13.0
else
TORCH ?= torch
endif

.PHONY: help install demo test test-slow test-all true-size fuzz sanitize bench bench-control gpu-check docs lint clean

help:
	@echo "make demo     train a small model, unlearn it at several degrees, draw the report (runs/demo/report.html)"
	@echo "make test     install and run the tests that are not marked as slow; about 10 minutes"
	@echo "make test-slow  run the slow tests; about 10 minutes"
	@echo "make test-all  run all tests; about 20 minutes"
	@echo "make true-size  one step of models of true size, up to Stable Diffusion 1.5: what it takes; 40 minutes"
	@echo "make fuzz     throw anything at the operators, the kernels and the readers of files, and kill 50 sweeps; over an hour, and clang++ is needed"
	@echo "make sanitize  run the core's tests with the kernels under g++'s sanitizers, and with faults put into them; 20 minutes"
	@echo "make bench    time the step against its peers on this CPU (and GPU); about 10 minutes"
	@echo "make bench-control  measure whether constraints settle at ε under noise; about 10 minutes"
	@echo "make gpu-check  with a GPU, CUDA and torch, and no network: build, CUDA tests, step times, sanitizers; at most 7 minutes"
	@echo "make docs     build the documentation (build/docs/index.html); a warning is an error"
	@echo "make lint     check style, docstrings, types, and which module imports which"
	@echo "make install  only make the environment, in $(VENV)"
	@echo "make clean    remove the environment and what was built"

install: $(STAMP)

# The stamp depends on what the binary is made of; Python sources are used in place and need no reinstall.
$(STAMP): pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12 ..." if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[all,test]'
	@touch $@

# --resume: a demo that was interrupted goes on, and a finished one is shown again rather than refused.
demo: $(STAMP)
	$(BIN)/unlearn-ext demo --out runs/demo --resume

# One process more than there are cores, since some tests wait for others; each takes a gigabyte, and it and those that it
# starts have one thread. A file stays in one, for what its tests share.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 5))')
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	$(PYTEST) -m slow $(SLOW)

test-all: $(STAMP)
	$(PYTEST)

true-size: $(STAMP)
	$(BIN)/python -m pytest tests/true_size

CLANG ?= $(firstword $(foreach name,clang++ $(foreach version,21 20 19 18 17 16 15 14,clang++-$(version)),$(shell command -v $(name))))
RUNS  ?= 10000000
CMAKE  = $(BIN)/cmake -S . -DUNLEARN_EXT_SANITIZE=address,undefined

fuzz: $(STAMP)
	@test -n "$(CLANG)" || { echo "No clang++ was found, whose libFuzzer this needs: install clang, or name one: make fuzz CLANG=..."; exit 1; }
	$(CMAKE) -B build/fuzz -DUNLEARN_EXT_FUZZ=ON -DCMAKE_CXX_COMPILER=$(CLANG)
	$(BIN)/cmake --build build/fuzz --target fuzz_step fuzz_qp
	mkdir -p build/corpus build/corpus-qp
	build/fuzz/fuzz_step -max_len=2048 -runs=$(RUNS) build/corpus tests/faults/corpus
	build/fuzz/fuzz_qp -max_len=256 -runs=$(RUNS) build/corpus-qp
	UNLEARN_EXT_FUZZ=10000 $(BIN)/python -m pytest tests/faults/test_fuzz_ops.py tests/faults/test_kills.py
	UNLEARN_EXT_FUZZ=12500 $(BIN)/python -m pytest tests/models/doors/test_fuzz_files.py

# A copy of the package around a binary of its own; the sanitizer's runtime must be in Python before anything else.
# Python itself leaks by design, and torch.compile would compile with the sanitizers.
PRELOAD = $(shell g++ -print-file-name=libasan.so) $(shell g++ -print-file-name=libstdc++.so)
sanitize: $(STAMP)
	rm -rf build/sanitized/unlearn_ext && mkdir -p build/sanitized && cp -r unlearn_ext build/sanitized
	rm -f build/sanitized/unlearn_ext/*.so
	$(CMAKE) -B build/sanitized/cmake -DUNLEARN_EXT_CUDA=off -DCMAKE_CXX_COMPILER=g++ \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/sanitized/unlearn_ext \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitized/cmake --parallel 2
	$(CMAKE) -B build/sanitized/emulated -DUNLEARN_EXT_EMULATE=ON -DCMAKE_CXX_COMPILER=g++ \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sanitized/emulated --parallel 2
	cd build/sanitized && LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. \
	  UNLEARN_EXT_EMULATED=$$(ls emulated/_C.*so) $(abspath $(BIN))/pytest \
	  -p no:cacheprovider ../../tests/ops ../../tests/optim ../../tests/emulation/test_emulated_kernels.py \
	  --ignore=../../tests/optim/test_compile.py $(addprefix ../../tests/faults/,test_fuzz_ops.py test_threads_and_forks.py)
	UNLEARN_EXT_MUTATIONS=1 $(BIN)/python -m pytest -q tests/emulation/test_mutations.py

RESULTS ?= benchmarks/results/$(shell date +%F)-$(shell uname -m).json

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-json=$(RESULTS)
	$(BIN)/python benchmarks/table.py $(RESULTS)
	$(BIN)/python benchmarks/plots.py $(RESULTS)

bench-control: $(STAMP)
	$(BIN)/python -m benchmarks.control

# In place, with the Python at hand: nothing is installed and nothing is fetched.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

# The package is installed already: pip only adds what the extra names.
$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet 'unlearn-ext[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --builder html docs build/docs
	@echo "build/docs/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info unlearn_ext/*.so
