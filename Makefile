# Every target sets up .venv first where it is missing or out of date; see ci/setup.sh.
PYTHON =
BIN = .venv/bin
MODEL = smollm2-135m

.DEFAULT_GOAL := help
.PHONY: help setup fetch parity check test test-extra mutants test-full system-packages clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## .venv with everything in constraints.txt; PYTHON=... names another Python 3.11
	@PYTHON="$(PYTHON)" sh ci/setup.sh

fetch: setup  ## the real model that the gate uses
	$(BIN)/finetune fetch $(MODEL)

parity: fetch  ## every tier, both stacks, on the CPU
	$(BIN)/parity run --profile quick

check: setup  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: fetch  ## every test that needs no system package
	$(BIN)/pytest -n 2 --dist loadfile

system-packages:  ## Debian packages for WebGPU, a browser, PostgreSQL; as root
	@sh ci/system-packages.sh

test-extra: fetch system-packages  ## what test leaves out: nightly tests, and WebGPU
	$(BIN)/pytest -m nightly --profile nightly
	$(BIN)/pytest -m webgpu

mutants: fetch  ## every planted bug; long; broken off, it goes on where it was
	@mkdir -p build
	$(BIN)/parity mutants --jobs 2 --json build/mutants.json --html build/mutants.html

test-full: test test-extra mutants  ## everything; installs Debian packages

clean:  ## removes .venv and every cache in this folder
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
