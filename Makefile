# Each target works from nothing: it makes .venv, installs the pinned packages and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a worker: two test workers on two cores, and small models gain nothing from more.
test notebooks: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-compat device-check docs notebooks types lint train clean

$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# Takes a thread for each core that is free, and says how long it will take; OMP_NUM_THREADS overrides.
demo: $(VENV)/.runtime
	$(BIN)/smc-bridge decode "Jack has 47 candies. A friend gives Jack 29 more. Jack sells 2. Jack buys 5 bags of 3 candies. How many candies does Jack have now?" --particles 4 --temperature 0.5 --seed 1 --trace
	$(BIN)/smc-bridge compare --n 20 --fresh --json runs/demo.json --methods ar,dlm-1,dlm-4,speculative,released,paper,smc-1,smc-4,tree-32

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 8

# The same with an older transformers, in a second environment: loading of models, their networks and their tokenizers.
OLDER := 4.57.6
COMPAT := .venv-compat
COMPAT_TESTS := $(addprefix tests/models/test_,families.py native.py native_odd.py conventions.py dit.py tokenizers.py prompts.py probes.py block_causal.py checkpoints.py loading.py head.py)

$(COMPAT)/.installed: pyproject.toml constraints.txt
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	grep -vE '^(transformers|huggingface_hub|tokenizers|hf-xet)==' constraints.txt > $(COMPAT)/constraints.txt
	$(COMPAT)/bin/python -m pip install --quiet --disable-pip-version-check -c $(COMPAT)/constraints.txt "transformers==$(OLDER)" -e ".[dev]"
	touch $@

test-compat: $(COMPAT)/.installed
	OMP_NUM_THREADS=1 $(COMPAT)/bin/python -m pytest -n 2 -W ignore::DeprecationWarning $(COMPAT_TESTS)

# Tests, equal draws, time and waits on a CUDA device, in less than eight minutes; says so where there is none.
device-check: $(VENV)/.dev
	$(BIN)/python -m benchmarks.device_check

# The site, in docs/_build/html/index.html: without a network, and a warning is an error.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx --quiet --nitpicky --fail-on-warning --keep-going docs docs/_build/html

# Every notebook in full size, outputs and all; `make test` runs them in a reduced one.
notebooks: $(VENV)/.dev
	$(BIN)/python notebooks/execute.py

# For mypy and import-linter, which read packages by their folders: smc_bridge with models and analysis where they are imported from.
types:
	rm -rf .types && mkdir -p .types/smc_bridge
	ln -s ../../models ../../analysis $(addprefix ../../,$(filter-out %/__pycache__,$(wildcard smc_bridge/*))) .types/smc_bridge/

lint: $(VENV)/.dev types
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd .types && ../$(BIN)/lint-imports --no-cache ../pyproject.toml

# Lists what is trained; `make train PART=NAME` trains it, `make train PART=pair` the embedded pair (under an hour),
# `make train PART=adult` the pair of a table, `make train PART=table_diffusion` TabDiff on the same one (both read rows of Adult).
# ARGS passes options on: `make train PART=markov ARGS="--out runs/markov.safetensors --steps 100"`. Without --out the file that ships is written anew.
RECIPE_pair := arithmetic.train
RECIPE_adult := training.table_pair
RECIPE_table_diffusion := training.table_diffusion
train: $(VENV)/.runtime
	OMP_NUM_THREADS=2 $(BIN)/python -m smc_bridge.models.$(or $(RECIPE_$(PART)),training $(PART)) $(ARGS)

clean:
	rm -rf $(VENV) $(COMPAT) .types runs build docs/_build docs/reference *.egg-info .mypy_cache .ruff_cache .pytest_cache
