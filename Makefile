# The set-up of a fresh machine is part of every target; it does nothing when .venv is up to date.
# Without make: python3 scripts/setup.py, then the commands below with .venv/bin on the PATH.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: help setup repro test test-all test-quick test-kernels check lock
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make .venv with torch for this machine and the locked dependencies
	@$(PYTHON) scripts/setup.py

repro: setup ## run the pipeline: raw text to reports/index.html
	dvc repro

test: setup ## run the tests, on all cores
	python -m pytest -n auto -m "not exhaustive"

test-all: setup ## run all tests, including half an hour of fault injection
	python -m pytest -n auto

test-quick: setup ## run the tests that need no whole pipeline and no browser
	python -m pytest -n auto -m "not slow"

# in a folder of its own, since PyTorch on a CPU behaves differently where it finds Triton
test-kernels: setup .triton ## run the Triton kernels' tests in Triton's interpreter, without a GPU (on Linux)
	TRITON_INTERPRET=1 PYTHONPATH=.triton python -m pytest -n auto -m triton

.triton:
	python -m pip install --quiet --no-deps --target .triton triton==3.6.0

check: setup ## lint, formatting and types
	ruff check .
	ruff format --check .
	mypy

# without the constraints, which a changed pyproject.toml may contradict; uv, since the set-up may need it
lock: | .venv ## update .venv to pyproject.toml and write its versions into constraints.txt
	python -m pip install --quiet -e '.[dev,hub]' uv
	python scripts/lock.py

.venv:
	@$(PYTHON) scripts/setup.py
