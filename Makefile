# Two commands: `make run` and `make test`. Each makes .venv when it is missing or out of date.
#
#   PYTHON=python3.12   the interpreter that .venv is made with  (default: the newest of 3.13, 3.12, 3.11)
#   TORCH_INDEX=URL     the package index for torch alone, for a CPU or a certain CUDA build
#   EXTRA=cpu|gpu       the ONNX runtime                         (default: gpu when `nvidia-smi -L` finds one)
#   ARGS='-k gates'     more arguments for pytest (make test) or dvc repro (make run)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint clean setup

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && echo $$python && break; done)
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_INDEX ?=
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

READY := .venv/ready-$(EXTRA)

# A .venv that was moved or copied here, or whose Python has gone, cannot be used: forget that it was ready.
ifneq ($(wildcard $(READY)),)
ifneq ($(shell cat $(READY); $(BIN)/python -c 'print("alive")' 2>/dev/null),$(CURDIR) alive)
$(shell rm -f $(READY))
endif
endif

help: ## lists these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: setup ## sets up, runs every stage of dvc.yaml that is out of date, and prints the results as a table
	@$(BIN)/dvc repro $(ARGS)
	@$(BIN)/mtlops summary

test: setup ## sets up and runs all tests
	@$(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup $(ARGS)

lint: setup ## checks style (ruff), types (mypy) and import layers (import-linter)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: ## removes .venv, caches and results; downloads (data/raw) and DVC's cache stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build ./*.egg-info
	rm -rf data/prepared data/encoder data/cache models reports
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(READY)

# torch goes first and alone: only it may come from TORCH_INDEX. The file $(READY) is written last, so a
# killed installation is seen (there is a .venv, but it is not ready) and made again from nothing.
$(READY): pyproject.toml constraints.txt Makefile
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: found no Python 3.11, 3.12 or 3.13 with its venv module. Install one, or name it:" \
			"make PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@if [ -e .venv ] && [ ! -e $@ ]; then \
		echo "make: .venv was not completed, was moved, or is for another machine: making it again" >&2; \
		rm -rf .venv; fi
	@rm -f $@
	@[ -e .venv ] || $(PYTHON) -m venv .venv
	@echo "make: installing into .venv for $(EXTRA) (about 2 GB, some minutes the first time)" >&2
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(shell grep '^torch==' constraints.txt)
	@$(PIP) --constraint constraints.txt --editable '.[$(EXTRA),train,pipelines,dev]'
	@echo "$(CURDIR)" > $@
