# make demo   draw a picture with the bundled demo model
# make test   run the tests
# make check  lint, format, types, import rules
# make bench  measure against diffusers on full-size v1.5 (minutes, about 12 GB of memory)
# make pins   pin requirements.txt and requirements-dev.txt anew, from the ranges in pyproject.toml
#
# Each sets up what it needs in .venv and uses it again next time. Needs make and Python 3.11 or newer.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

# The first Python of 3.11 or newer that can make environments; 3.11 first, because the pins were made with it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$python && break; done)

.PHONY: demo test check bench pins clean

demo: $(VENV)/.runtime
	SD_WEIGHTS=demo/weights SD_OUTPUTS=outputs $(BIN)/python handler.py
	@echo "The picture: $$(ls -t $(CURDIR)/outputs/*.png | head -n 1)"

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.dev
	for script in text vae step peak start first demo batch throughput; do $(BIN)/python -m bench.$$script $(ARGS) || exit 1; done

# A stamp is newer than the pins that it stands for, so a changed pin installs and an unchanged one costs nothing.
$(VENV)/.runtime: requirements.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with its venv module was found. Install one, or say: make PYTHON=/path/to/python" >&2; \
		exit 1; fi
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages into $(VENV) (only when they change; the first time takes minutes)"
	@$(PIP) install -r requirements.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt requirements-nodeps.txt
	@echo "Installing the packages of tests and checks into $(VENV)"
	@$(PIP) install -r requirements-dev.txt
	@$(PIP) install --no-deps -r requirements-nodeps.txt
	@touch $@

# Newest versions in pyproject.toml's ranges, but of torch the one that the Dockerfile's base image has.
PINS := .venv-pins
TORCH := $(shell sed -n 's|^ARG BASE_IMAGE=.*:\([0-9.]*\)-.*|\1|p' Dockerfile)
RANGES = $(PINS)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*$(1), sep='\n')"
FREEZE = $(PINS)/bin/python -m pip freeze --all --exclude pip --exclude wheel | sed -E \
	-e 's/^(torch==[0-9.]+)\+.*/\1/' -e 's/^backports\.zstd==.*/& ; python_version < "3.14"/'

pins:
	$(PYTHON) -m venv --clear $(PINS)
	$(call RANGES,p['dependencies']) > $(PINS)/ranges.txt
	$(PINS)/bin/python -m pip install --quiet torch==$(TORCH) -r $(PINS)/ranges.txt
	$(FREEZE) > $(PINS)/running.txt
	$(call RANGES,p['optional-dependencies']['dev']) > $(PINS)/ranges.txt
	sed 's/ ;.*//' $(PINS)/running.txt > $(PINS)/constraints.txt
	$(PINS)/bin/python -m pip install --quiet -c $(PINS)/constraints.txt -r $(PINS)/ranges.txt
	(sed -n '1p' requirements.txt; cat $(PINS)/running.txt) > $(PINS)/requirements.txt
	(sed -n '1,2p' requirements-dev.txt; $(FREEZE) | grep -vxFf $(PINS)/running.txt) > $(PINS)/requirements-dev.txt
	mv $(PINS)/requirements.txt $(PINS)/requirements-dev.txt .
	rm -rf $(PINS)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
