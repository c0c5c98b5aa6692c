# Everything runs in .venv, which `setup` makes and afterwards leaves alone until a pin changes.
# Needs a Python of at least 3.11 and nothing else (Java comes as a wheel).
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
PACKAGES := envs agents eval training

.PHONY: setup demo textworld test test-slow test-lowest integrations lint docs docs-serve bench gpu-check clean build/types

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "StepAgent needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -c constraints.txt pip setuptools wheel
	$(PY) -m pip install --quiet -c constraints.txt torch
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[train,dev]'
	$(PY) -m stepagent install smollm2 alfworld-data openenv-client
	@touch $@

demo: setup
	$(PY) -m stepagent train --config demo

# One thread a worker: the workers fill the cores already.
TEST_WORKERS ?= 2

test: setup lint docs
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(TEST_WORKERS)

# ALFWorld's reference engine (engine="textworld"): compiled on the spot, a few minutes.
textworld: setup
	$(PY) -m stepagent install textworld

test-slow: setup
	$(PY) -m pytest -m slow

# The core tests on the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest: setup
	$(PY) -m pytest -m slow tests/test_lowest.py

# Other libraries, each in an environment of its own (build/integrations): docs/pages/integrations.md.
integrations: setup
	$(PY) -m tests.integrations.environments
	$(PY) -m pytest -m integration tests/integrations

# Type checkers, import-linter and the API reference read packages from the disk: there
# `stepagent.envs` is a link.
build/types:
	@rm -rf $@ && mkdir -p $@/stepagent
	@ln -s $(addprefix $(CURDIR)/,$(wildcard stepagent/*.py) stepagent/py.typed $(PACKAGES)) $@/stepagent

lint: setup build/types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	cd build/types && ../../.venv/bin/lint-imports --config ../../pyproject.toml

# Into docs/site. A broken link or anchor, or an option without a description, is an error.
docs: setup build/types
	cd docs && ../$(PY) -m zensical build --strict --clean

docs-serve: setup build/types
	cd docs && ../$(PY) -m zensical serve

bench: setup
	for name in envs rollout practice reflection; do $(PY) -m stepagent bench $$name || exit 1; done

# On a machine with a GPU; without one, the same code on tiny models.
gpu-check: setup
	$(PY) -m stepagent.training.benchmarks.gpu_check --out build/gpu-check.json

clean:
	rm -rf .venv build docs/site docs/.cache *.egg-info
