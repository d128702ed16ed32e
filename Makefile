# make demo and make test need Python 3.10 or later, git and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-browser test-failed lint audit soak fuzz killed-clients faults docs clean

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cluster-remote demo

test: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 4 --dist worksteal -m "not slow"

# Also what repeats other tests across versions and ways, or takes long by its nature.
test-all: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 4 --dist worksteal -m "not browser"

# What needs a real browser: chromium and chromium-driver.
test-browser: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m browser

# What failed in the last run, one test at a time.
test-failed: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest --last-failed --last-failed-no-failures none

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known faults of the installed packages. pip-audit has many dependencies, so it gets an environment of its own.
audit: $(VENV)/installed
	$(PYTHON) -m venv $(VENV)/audit
	if $(VENV)/audit/bin/python -m pip install --quiet pip-audit; then \
		$(VENV)/audit/bin/python .ci/audit.py $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	else echo "NOT AUDITED: pip-audit cannot be installed" >&2; fi

# Thousands of steps of the state machine in each of the three ways, and a million inputs: docs/reliability.md.
STEPS ?= 2000
SEED ?= 1
INPUTS ?= 1000000

soak: $(VENV)/installed
	for way in serverless served native; do \
		$(BIN)/python -m tests.proof.soak --way $$way --steps $(STEPS) --seed $(SEED) || exit 1; \
	done

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.proof.fuzz --inputs $(INPUTS) --seed $(SEED)

killed-clients: $(VENV)/installed
	$(BIN)/python -m tests.proof.killed_clients --clients 50 --minutes 5

# The tables in docs/reliability.md.
faults: $(VENV)/installed
	$(BIN)/python -m tests.proof.faults --write

# The pages and pictures that are made by the code, then the site, in site/.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python -m cluster_remote.cli.schema > docs/json.md
	$(BIN)/python docs/make_cli.py > docs/reference/cli.md
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python docs/make_pictures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis
