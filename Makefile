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

.PHONY: help install demo test true-size bench gpu-check docs lint clean

help:
	@echo "make demo     train a small model, unlearn it at several degrees, draw the report (runs/demo/report.html)"
	@echo "make test     install and run the tests"
	@echo "make true-size  one step of a 256-pixel VQ-GAN, a ViT-B MAE and a 62 M U-Net: what it takes; 20 minutes"
	@echo "make bench    time the step against its peers on this CPU (and GPU); about 10 minutes"
	@echo "make gpu-check  with a GPU, CUDA and torch, and no network: build, CUDA tests, sanitizers, benchmarks"
	@echo "make docs     build the documentation (build/docs/index.html); a warning is an error"
	@echo "make lint     check the Python style"
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

demo: $(STAMP)
	$(BIN)/unlearn-ext demo --out runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

true-size: $(STAMP)
	$(BIN)/python -m pytest tests/true_size

RESULTS ?= benchmarks/results/$(shell date +%F)-$(shell uname -m).json

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-json=$(RESULTS)
	$(BIN)/python benchmarks/table.py $(RESULTS)
	$(BIN)/python benchmarks/plots.py $(RESULTS)

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

clean:
	rm -rf $(VENV) build dist *.egg-info unlearn_ext/*.so
