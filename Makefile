# Everything sets itself up: `make demo` and `make test` start from nothing but Python 3.10 or newer.
PYTHON ?= python3
PIP_OPTIONS = --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test bench check format docs clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: .venv/demo-ready ## Train PPO on CartPole over two simulators on this machine, with a learning curve
	.venv/bin/remoterl demo

test: .venv/test-ready .venv-simulator/ready check ## Run every check and every test
	.venv/bin/python tests/side_by_side.py

bench: .venv/test-ready ## Measure remoterl beside the alternatives (an hour; `python -m benchmarks --quick` is shorter)
	.venv/bin/python -m benchmarks

check: .venv/test-ready ## Check format, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/mypy --config-file tests/mypy.ini

format: .venv/test-ready ## Format the code and fix what can be fixed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: .venv/docs-ready ## Build the documentation into out/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

clean: ## Remove the virtual environments and what tools left
	rm -rf .venv .venv-simulator *.egg-info build dist .pytest_cache .mypy_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-ready: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/python -m pip install $(PIP_OPTIONS) -e '.[sb3]'
	@touch $@

.venv/test-ready: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/python -m pip install $(PIP_OPTIONS) -e '.[sb3,rllib,dev]'
	@touch $@

.venv/docs-ready: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/python -m pip install $(PIP_OPTIONS) -e '.[docs]'
	@touch $@

# The tests' simulators have the core package and environments only: neither torch nor Stable-Baselines3.
.venv-simulator/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-simulator
	.venv-simulator/bin/python -m pip install $(PIP_OPTIONS) -e '.[test-envs]'
	@touch $@
