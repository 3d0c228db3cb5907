# Two commands: `make run` and `make test`. Each makes .venv when it is missing or out of date.
#
#   PYTHON=python3.12   the interpreter that .venv is made with  (default: the newest of 3.13, 3.12, 3.11)
#   TORCH_INDEX=URL     the package index for torch alone, for a CPU or a certain CUDA build
#   EXTRA=cpu|gpu       the ONNX runtime                         (default: gpu when `nvidia-smi -L` finds one)
#   ARGS='-k gates'     more arguments for pytest (make test), dvc repro (make run), the build (make image) or the
#                       demo (make demo ARGS='--scenario worse')
#   PARTS='serving'     the benchmarks that make bench runs  (default: all but `methods`, an hour or two)
#
# And for `make image`:
#
#   TARGET=cpu|gpu      what the image is for                    (default: cpu)
#   IMAGE=NAME:VERSION  its name                                 (default: the one in components/image.py, -gpu for gpu)
#   BASE=IMAGE          what it is built on                      (default: python:3.11-slim)
#   SOURCE=URL          where its code can be found; a label

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test demo bench image lint audit clean setup

PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && echo $$python && break; done)
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
TORCH_INDEX ?=
ARGS ?=
PARTS ?= training many_tasks serving monitoring drift gate
TARGET ?= cpu
IMAGE ?= $(shell sed -n 's/^IMAGE = "\(.*\)"/\1/p' components/image.py)$(if $(filter gpu,$(TARGET)),-gpu)
BASE ?=
SOURCE ?= unknown

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

READY := .venv/ready-$(EXTRA)

REVISION = $(or $(shell git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null),unknown)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
LABEL := org.opencontainers.image
SBOM := /venv/share/sbom.cdx.json

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

demo: ## a task drifts in production and is repaired, live on this machine: server, monitor, pipeline, registry
	@$(MAKE) --no-print-directory run ARGS=
	@$(BIN)/python -m monitoring.demo $(ARGS)

bench: setup ## measures ours beside references and rewrites docs/benchmarks.md; needs a finished `make run`
	@for part in $(PARTS); do $(BIN)/python -m tests.benchmarks.$$part $(ARGS) || exit; done

# The three understand the same Dockerfile; a HEALTHCHECK is kept only in Docker's own format.
image: ## builds the container image with docker, podman or buildah, and lists its contents in build/
	@engine=$$(for engine in docker podman buildah; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done); \
	if [ -z "$$engine" ]; then \
		echo "make: neither docker nor podman nor buildah answers. Install one, or start Docker." >&2; exit 1; fi; \
	set -e; \
	$$engine build $$([ $$engine = docker ] || echo --format docker) --target $(TARGET) --tag $(IMAGE) \
		$(if $(BASE),--build-arg BASE=$(BASE)) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) \
		--build-arg REVISION=$(REVISION) --label $(LABEL).revision=$(REVISION) --label $(LABEL).version=$(VERSION) \
		--label $(LABEL).source=$(SOURCE) $(ARGS) .; \
	mkdir -p build; \
	if [ $$engine = buildah ]; then \
		container=$$(buildah from $(IMAGE)); trap "buildah rm $$container >/dev/null" EXIT; \
		buildah run $$container cat $(SBOM) > build/sbom-$(TARGET).cdx.json; \
	else $$engine run --rm $(IMAGE) cat $(SBOM) > build/sbom-$(TARGET).cdx.json; fi; \
	echo "$(IMAGE): $$($$engine images --format '{{.Size}}' $(IMAGE)), contents in build/sbom-$(TARGET).cdx.json"; \
	echo "  $$(echo $$engine | sed s/buildah/podman/) run --rm $(IMAGE) mtlops --help"; \
	echo "  .venv/bin/python -m pipelines run --runner docker --image $(IMAGE)"

lint: setup ## checks style (ruff), types (mypy) and import layers (import-linter)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: setup ## looks up known vulnerabilities of every version in constraints.txt; exit 1 when there is one
	@$(BIN)/python .ci/audit.py

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
	@$(PIP) --constraint constraints.txt --editable '.[$(EXTRA),train,pipelines,serve,otel,sign,monitor,dev]'
	@echo "$(CURDIR)" > $@
