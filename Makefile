# Everything works as the first command on a fresh Debian machine: the environment goes to .venv/, Debian's packages come
# through apt when we may install them. A second run takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TOOLS := gcc libc6-dev make gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm
BENCH_TOOLS := $(TOOLS) gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf qemu-system-misc llvm-19
TEST_TOOLS := $(BENCH_TOOLS) g++ clang libclang-rt-14-dev cmake git lld nodejs \
	arduino-builder arduino-core-avr simavr chromium
# torch from PyPI is the CUDA build on Linux, several GB. Where a CPU wheel is at hand, point pip at it:
#   make test PIP_FLAGS='--extra-index-url https://download.pytorch.org/whl/cpu'
PIP_FLAGS ?=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint format bench report-picture records policies clean help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/:/' | awk -F: '{printf "%-14s %s\n", $$1, $$2}'

demo: $(VENV)/.core .tools ## compile two trained policies, run them on this machine and on an emulated Cortex-M55
	$(BIN)/python benchmarks/demo.py

test: $(VENV)/.dev .test-tools ## run the whole test suite
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.core .bench-tools ## measure, and write the tables of the README
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/int16.py
	$(BIN)/python benchmarks/cycles.py
	$(BIN)/python benchmarks/llvm_options.py

report-picture: $(VENV)/.dev .bench-tools ## take the picture of the README: the report of the CartPole policy, in Chromium
	@sh .ci/apt chromium
	$(BIN)/python benchmarks/report_picture.py

records: $(VENV)/.dev .test-tools ## tune the reference policies for every board, and write the records that ship
	$(BIN)/python benchmarks/tune_references.py

policies: $(VENV)/.dev ## train the two policies of the repository again (extra `rl`, about ten minutes)
	$(BIN)/python benchmarks/policies/train.py cartpole
	$(BIN)/python benchmarks/policies/train.py pendulum

clean: ## remove what was built, and the environment
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python: | .python
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(PIP_FLAGS) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(PIP_FLAGS) torch==2.13.0 # alone first: a pip whose index has only this file of it must not look further
	$(PIP) $(PIP_FLAGS) --editable '.[board,dev,report,rl,tflite,tune]'
	@touch $@ $(VENV)/.core

.PHONY: .python .tools .bench-tools .test-tools
.python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || sh .ci/apt python3 python3-venv

.tools:
	@sh .ci/apt $(TOOLS)

.bench-tools:
	@sh .ci/apt $(BENCH_TOOLS)

.test-tools:
	@sh .ci/apt $(TEST_TOOLS)
