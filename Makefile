# `make demo` and `make test` are all a new user needs; `make` alone lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

# VENV=0 runs everything with PYTHON as it is and installs nothing.
PYTHON ?= python3
VENV ?= 1
JOBS ?= 2
GPU_JOBS ?= 8
# Of make gpu: some of calls, bits, counters, goals, probe and tests; all of them unless named.
STAGES ?=
GPU ?= h200
GPU_CACHE := build/gpu-cache

ifeq ($(VENV),0)
PY := $(PYTHON)
ENV :=
else
PY := .venv/bin/python
ENV := .venv/.stamp
endif

OLDEST := 3.6.0
NEWEST := 3.9.0
PYTEST := -m pytest --no-header --dist worksteal

.PHONY: help env demo test docs pages models compiled aot-slow aot-oldest aot-newest mutate gpu gpu-run gpu-cache lint

help:
	@cat <<'TEXT'
	make demo        the main job on real input: ResNet-50's layers on a GPU, a photograph without one
	make test        the CPU test suite: kernels in Triton's interpreter, compiled ahead of time, and executed on the CPU
	make docs        the documentation as a site, build/docs/index.html
	make pages       renews every block of README and docs that is made from the code and the committed results
	make compiled    executes all compiled code: the tests and what GPUs choose; goes on where it stopped (hours)
	make gpu         everything that needs a GPU, with its log and results kept (STAGES="calls goals": some of it)
	make gpu-cache   the kernels that make gpu runs, compiled without a GPU (GPU=h200) by Triton $(OLDEST), to take along
	make models      whole models of torchvision, timm and diffusers, converted: goes on where it stopped (hours), docs/models.md
	make lint        ruff and mypy
	make mutate      breaks the kernels on purpose and checks that tests notice
	make aot-slow    more of both: other types, sm_80 and sm_100
	make aot-oldest  the ahead-of-time tests on the oldest Triton, $(OLDEST)
	make aot-newest  the same on the newest, $(NEWEST)
	make env         only the environment, .venv, as constraints.txt pins it
	VENV=0 PYTHON=... uses that Python as it is instead of .venv
	TEXT

env: $(ENV)

# torch comes first and by its pinned version, so that a CPU build at hand satisfies it.
.venv/.stamp: pyproject.toml constraints.txt
	@echo "installing the environment into .venv (a few minutes, torch is large)"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install -q -c constraints.txt "$$(grep '^torch==' constraints.txt)" setuptools
	.venv/bin/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[report,test,dev,docs]'
	touch $@

# timm and diffusers come without what they require, most of which is there.
models: $(ENV)
	@if [ -n "$(ENV)" ]; then
	  $(PY) -m pip install -q -c constraints.txt huggingface_hub safetensors regex onnx onnxscript
	  $(PY) -m pip install -q --no-deps -c constraints.txt timm diffusers importlib_metadata zipp
	fi
	nice -n 10 $(PY) -m bench.models

demo: $(ENV)
	@$(PY) -m bench demo

lint: $(ENV)
	@$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# One thread a process: torch's own convolutions would otherwise fight the other workers for the cores.
test: $(ENV)
	@export OMP_NUM_THREADS=1
	TRITON_INTERPRET=1 $(PY) $(PYTEST) -q -n $(JOBS) -m "not gpu and not aot and not compiled and not slow" tests
	if $(PY) -c 'import numba' 2>/dev/null; then
	  $(PY) -m bench.executor compile
	  TRITON_INTERPRET=0 $(PY) $(PYTEST) -q -n $(JOBS) -m "compiled and not slow" tests
	else
	  echo "compiled code was not run: the executor needs numba"
	fi
	TRITON_INTERPRET=0 $(PY) $(PYTEST) -q -n $(JOBS) -m "aot and not slow" tests
	echo "not run here: the tests that need a GPU (make gpu)"

docs: $(ENV)
	@$(PY) -m sphinx -b html -W --keep-going -q docs build/docs
	echo "build/docs/index.html"

pages: $(ENV)
	@$(PY) -m bench pages

compiled: $(ENV)
	@$(PY) -m bench.executor compile
	$(PY) -m bench compiled --jobs $(JOBS)

aot-slow: $(ENV)
	@export OMP_NUM_THREADS=1
	TRITON_INTERPRET=1 $(PY) $(PYTEST) -q -n $(JOBS) -m "slow and not gpu and not aot and not compiled" tests
	TRITON_INTERPRET=0 $(PY) $(PYTEST) -q -n $(JOBS) -m "compiled and slow" tests
	TRITON_INTERPRET=0 $(PY) $(PYTEST) -q -n $(JOBS) -m "aot and slow" tests

aot-oldest: TRITON := $(OLDEST)
aot-newest: TRITON := $(NEWEST)
aot-oldest: build/triton-$(OLDEST)/.stamp
aot-newest: build/triton-$(NEWEST)/.stamp
aot-oldest aot-newest: $(ENV)
	@export OMP_NUM_THREADS=1 PYTHONPATH=build/triton-$(TRITON)
	$(PY) -c 'import triton; print("Triton", triton.__version__); assert triton.__version__ == "$(TRITON)"'
	TRITON_INTERPRET=0 $(PY) $(PYTEST) -q -n $(JOBS) -m aot tests

mutate: $(ENV)
	@export OMP_NUM_THREADS=1
	$(PY) tests/mutations.py

build/triton-%/.stamp: | $(ENV)
	@rm -rf $(@D)
	$(PY) -m pip install -q --no-deps --target $(@D) triton==$*
	touch $@

# A Python that already has torch, Triton and a GPU is used as it is: a GPU machine may have no way to install anything.
gpu:
	@if $(PYTHON) -c 'import torch, triton, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
	  exec $(MAKE) --no-print-directory gpu-run VENV=0
	fi
	exec $(MAKE) --no-print-directory gpu-run

gpu-run: $(ENV)
	@unset TRITON_INTERPRET
	export PYTHONUNBUFFERED=1 GPU_JOBS=$(GPU_JOBS)
	dir=$$($(PY) -m bench.provenance)
	mkdir -p "$$dir"
	$(PY) -m bench gpu $(STAGES) --out "$$dir" --prepared $(GPU_CACHE) 2>&1 | tee -a "$$dir/gpu.log"

# Compiled by the Triton of the machine that it is for: 64 MiB or less, which may travel there.
gpu-cache: $(ENV) build/triton-$(OLDEST)/.stamp
	@export OMP_NUM_THREADS=1 PYTHONPATH=build/triton-$(OLDEST)
	$(PY) -m bench warm --device $(GPU) --out $(GPU_CACHE)
