# `make` lists the targets. Each sets up what it needs in .venv and reuses it. Needs make and Python 3.11 or newer.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=

# The quick tests, in a process for each core. More threads in each would only compete with the other processes.
QUICK = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical -m "not full_size and not slow"

# The first Python of 3.11 or newer that has the venv module; 3.11 first, because the pins were made with it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo $$python && break; done)

BENCH ?= text vae step prompts samplers deepcache models reorders peak memory start first demo batch throughput
DEMO_LORA := demo/weights/loras/pink-teal.safetensors
OUT ?= $(error set the folder of the training: make demo-weights OUT=FOLDER)

# The newest versions in pyproject.toml's ranges, except torch, whose version is that of the Dockerfile's base image.
PINS := .venv-pins
TORCH := $(shell sed -n 's|^ARG BASE_IMAGE=.*:\([0-9.]*\)-.*|\1|p' Dockerfile)
RANGES = $(PINS)/bin/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*$(1), sep='\n')"
FREEZE = $(PINS)/bin/python -m pip freeze --all --exclude pip --exclude wheel | sed -E \
	-e 's/^(torch==[0-9.]+)\+.*/\1/' -e 's/^backports\.zstd==.*/& ; python_version < "3.14"/'

.DEFAULT_GOAL := help
.PHONY: help demo test test-all soak coverage check format bench docs judge gallery demo-weights wheel hooks pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## generate an image with the bundled demo model and say where it is
	SD_WEIGHTS=demo/weights SD_OUTPUTS=outputs $(BIN)/python handler.py
	@echo "The image: $$(ls -t $(CURDIR)/outputs/*.png | head -n 1)"

test: $(VENV)/.dev ## run the quick tests (minutes); ARGS="-k sampler" goes to pytest
	$(QUICK) $(ARGS)

test-all: $(VENV)/.dev ## run every test and check the coverage floor; with ARGS, only what pytest selects
ifeq ($(ARGS),)
	$(QUICK) --cov --cov-report= --cov-fail-under=0
	$(BIN)/python -m pytest -m "full_size or slow" --cov --cov-append
else
	$(BIN)/python -m pytest $(ARGS)
endif

soak: $(VENV)/.dev ## run 500 mixed jobs through the real SDK (SOAK_JOBS=500)
	SOAK_JOBS=$(or $(SOAK_JOBS),500) $(BIN)/python -m pytest tests/soak $(ARGS)

coverage: $(VENV)/.dev ## run the quick tests and list the lines that they miss
	$(QUICK) --cov --cov-report=term-missing $(ARGS)

check: $(VENV)/.dev ## lint, format, types, import rules, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

format: $(VENV)/.dev ## apply the formatter and the linter's safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## measure beside diffusers at v1.5's size (long, 12 GB); BENCH="step vae" selects
	for script in $(BENCH); do $(BIN)/python -m bench.$$script $(ARGS) || exit 1; done

docs: $(VENV)/.dev ## write the table of a job's fields in docs/api.md from the code
	$(BIN)/python -m worker.api.docs

judge: $(VENV)/.dev ## count how often the demo model generates what its prompts say
	$(BIN)/python -m demo.judge $(ARGS)

gallery: $(VENV)/.dev ## generate the images of docs/gallery.md again
	$(BIN)/python -m demo.gallery

demo-weights: $(VENV)/.dev ## train the demo model in the folder OUT (hours) and replace demo/weights
	$(BIN)/python -m demo.vocabulary --out $(OUT)
	$(BIN)/python -m demo.train_vae --out $(OUT)
	$(BIN)/python -m demo.train_diffusion --out $(OUT) --steps 1500 --decay-steps 3500
	$(BIN)/python -m demo.train_diffusion --out $(OUT) --steps 1600 --pure-noise 0.12
	$(BIN)/python -m demo.train_decoder --out $(OUT) --steps 900
	$(BIN)/python -m demo.train_text --out $(OUT)
	$(BIN)/python -m demo.train_diffusion --out $(OUT) --steps 1500 --decay-steps 3600 --pure-noise 0.4
	$(BIN)/python -m demo.train_diffusion --out $(OUT) --steps 1000 --pure-noise 0.4 --seed 2
	$(BIN)/python -m demo.train_diffusion --out $(OUT) --steps 1100 --pure-noise 0.12 --seed 3 --stars 3
	$(BIN)/python -m demo.train_decoder --out $(OUT) --steps 2000 --learning-rate 5e-4
	$(BIN)/python -m demo.train_decoder --out $(OUT) --steps 1000 --learning-rate 5e-4 --seed 4 --stars 4
	$(BIN)/python -m demo.train_colours --out $(OUT) --steps 400
	$(BIN)/python -m demo.train_colours --out $(OUT) --steps 300 --learning-rate 5e-4 --seed 5 --stars 4
	$(BIN)/python -m demo.assemble --out $(OUT)
	$(BIN)/python -m demo.train_lora --images 1536 --steps 900
	$(BIN)/python -m demo.train_lora --images 1280 --steps 400 --learning-rate 1.5e-3 --seed 1 --start $(DEMO_LORA)
	$(BIN)/python -m demo.train_lora --images 1280 --steps 400 --learning-rate 1e-3 --seed 2 --start $(DEMO_LORA)
	$(BIN)/python -m demo.train_lora --steps 1400 --learning-rate 1.5e-3 --seed 3 --pure-noise 0.4 --start $(DEMO_LORA)
	$(BIN)/python -m demo.train_lora --steps 1400 --learning-rate 1.2e-3 --seed 4 --pure-noise 0.4 --start $(DEMO_LORA)
	$(BIN)/python -m demo.train_controlnet

wheel: $(VENV)/.dev ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

hooks: $(VENV)/.dev ## run the checks before every git commit from now on
	$(BIN)/pre-commit install

pins: ## update the pins of requirements*.txt from the ranges in pyproject.toml
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

clean: ## remove the environment, caches and what was built
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist *.egg-info

# A stamp is newer than the pins that were installed, so that only changed pins are installed again.
$(VENV)/.runtime: requirements.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with its venv module was found. Install one, or run: make PYTHON=/path/to/python" >&2; \
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
