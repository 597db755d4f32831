# `make demo` and `make test` are all a fresh machine needs: both create $(VENV), install this project into it and go.
# Needs: Python >= 3.10 with venv, a C++ compiler and Python.h (hnswlib has no wheels and is compiled).
# Other interpreter or place: make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
# Test processes. Each may hold torch (about 1 GB), and the builds inside use threads of their own.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
INSTALL_INPUTS := setup.cfg setup.py pyproject.toml constraints.txt

# hnswlib's setup compiles with -march=native unless this is set. Such a build dies with "Illegal instruction" on an
# older CPU, and it gets there: by pip's wheel cache, a container image or a home folder on the network. The price is
# SSE instead of AVX in the graph search; `make venv HNSWLIB_NO_NATIVE=` in a fresh VENV buys it back.
export HNSWLIB_NO_NATIVE ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint types runtime venv clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed  ## Install .[build,cpu] (no torch), build a bundle from made-up images, run it; writes demo/
	$(BIN)/pcexport demo -o demo

test: $(VENV)/.installed-dev  ## Install everything and run the tests; PYTEST_ARGS="-k coreset -x" is passed on
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy: strict on pcrun
	$(BIN)/mypy

# The device's side: an environment with the runtime and onnxruntime alone must run a bundle.
runtime: $(VENV)-runtime/.installed  ## Install .[cpu] without torch into .venv-runtime and replay bundles with it
	$(VENV)-runtime/bin/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)"
	$(VENV)-runtime/bin/pcrun selftest --bundle tests/data/tiny_schema1.pcbundle
	$(VENV)-runtime/bin/pcrun selftest --bundle tests/data/tiny_schema2.pcbundle
	$(VENV)-runtime/bin/pcrun selftest --bundle tests/data/tiny_schema3.pcbundle

$(VENV)-runtime/.installed: $(INSTALL_INPUTS)
	$(MAKE) --no-print-directory VENV=$(VENV)-runtime $(VENV)-runtime/bin/pip
	$(VENV)-runtime/bin/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e ".[cpu]"
	@$(VENV)-runtime/bin/python scripts/check_opencv.py
	@touch $@

venv: $(VENV)/.installed-dev  ## Only create the virtual environment, with everything in it

clean:  ## Remove build leftovers, caches and demo/; the virtual environment stays
	rm -rf build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find benchmarks configs exporter runtime scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# hnswlib goes first: a missing compiler then shows after seconds, not after all other downloads. Without the cache,
# because pip would take a wheel from there that was compiled with other flags.
define install
	@echo "installing hnswlib (compiles for about a minute)"
	@$(PIP_INSTALL) --no-cache-dir hnswlib || { \
	  echo "hnswlib could not be installed. It is compiled here and needs a C++ compiler and Python.h;" \
	       "on Debian or Ubuntu: sudo apt-get install g++ python3-dev" >&2; exit 1; }
	$(PIP_INSTALL) -e ".[$(1)]"
	@$(BIN)/python scripts/check_opencv.py
endef

# One stamp for users, one for developers; the second install contains the first.
$(VENV)/.installed: $(INSTALL_INPUTS) | $(BIN)/pip
	$(call install,build$(comma)cpu)
	@touch $@

$(VENV)/.installed-dev: $(INSTALL_INPUTS) | $(BIN)/pip
	$(call install,export$(comma)cpu$(comma)openvino$(comma)mqtt$(comma)metrics$(comma)web$(comma)timm$(comma)dev)
	@touch $(VENV)/.installed $@

comma := ,

$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "$(PYTHON) was not found. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python" >&2; \
	  exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1), but Python 3.10 or newer is needed." \
	       "Name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments (no venv or ensurepip module);" \
	       "on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	"$(PYTHON)" -m venv "$(VENV)"
