# Everything sets itself up: `make demo` and `make test` start from nothing but Python 3.10 or newer.
PYTHON ?= python3
TEST_EXTRAS = sb3,rllib,dev
PIP_OPTIONS = --quiet --disable-pip-version-check

# $(call install,VENV,EXTRAS): this package into a virtual environment. uv does in seconds what takes pip minutes. It
# reads none of pip's settings, so it is told of those that say where packages are; where there is no uv for this
# machine, or it fails, pip does it. Byte code is made ahead, as pip makes it, where Python may not keep its own.
define install
@echo "Installing remoterl[$(2)] into $(1)"
@pip="$(1)/bin/python -m pip"; settings=$$($$pip config list); \
said() { printf '%s\n' "$$settings" | sed -n "s/^[^=]*\.$$1='\(.*\)'$$/\1/p" | sed 's/\\n/ /g' | head -n 1; }; \
given() { [ -z "$$2" ] || export "$$1=$$2"; }; \
{ $$pip install $(PIP_OPTIONS) uv && ( \
	given UV_DEFAULT_INDEX "$${UV_DEFAULT_INDEX:-$$(said index-url)}"; \
	given UV_INDEX "$${UV_INDEX:-$$(said extra-index-url)}"; \
	given UV_FIND_LINKS "$${UV_FIND_LINKS:-$$(said find-links)}"; \
	given UV_CONSTRAINT "$${UV_CONSTRAINT:-$$(said constraint)}"; \
	given SSL_CERT_FILE "$${SSL_CERT_FILE:-$$(said cert)}"; \
	given UV_COMPILE_BYTECODE "$${PYTHONDONTWRITEBYTECODE:+1}"; \
	$(1)/bin/uv pip install --quiet --python $(1)/bin/python --index-strategy unsafe-best-match \
		-c constraints.txt -e '.[$(2)]' ); } || \
	$$pip install $(PIP_OPTIONS) -c constraints.txt -e '.[$(2)]'
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test bench check format docs clean

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: .venv/demo-ready ## Train PPO on CartPole over two simulators on this machine, with a learning curve
	.venv/bin/remoterl demo

# Byte code is kept: what all the tests' processes import is compiled once.
test: export PYTHONDONTWRITEBYTECODE =
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
	$(call install,.venv,sb3)

.venv/test-ready: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.venv,$(TEST_EXTRAS))

.venv/docs-ready: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.venv,docs)

# The tests' simulators have the core package and environments only: neither torch nor Stable-Baselines3.
.venv-simulator/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-simulator
	$(call install,.venv-simulator,test-envs)
