# Every target makes .venv where it is missing or out of date, then does its work.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: test check mmlu bench
test: $(STAMP)
	$(BIN)/python -m pytest -q $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mmlu: $(STAMP)
	$(BIN)/python -m evals.mmlu $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m pytest --benchmark-only $(ARGS)

# torch first and alone: its pinned version decides between CPU and CUDA builds, not the resolver.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
