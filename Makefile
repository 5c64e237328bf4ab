# `make demo` and `make test` need nothing but Python 3.11 or newer and make: they set up .venv by themselves.
# `make help` lists all targets. Another interpreter: `make test PYTHON=python3.12`.

PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
PAGES := $(wildcard README.md docs/*.md docs/*/*.md)
COG := $(BIN)/cog -I tools --verbosity=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint types docs-fresh test-slow gpu-check docs help-docs gallery bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.runtime ## train a tiny model on the bundled digits for a few minutes, sample 64 into demo/grid.png
	@mkdir -p demo
	$(BIN)/ddpm train builtin:digits -o demo/run --preset tiny --steps 2000 --max-time 4m
	$(BIN)/ddpm sample -m demo/run -n 64 -o demo/grid.png --force
	@echo "The picture is $(CURDIR)/demo/grid.png"

test: lint types docs-fresh ## what CI runs: lint, types, freshness of the documentation, fast tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

lint: $(VENV)/.dev ## ruff: rules and format; import-linter: the order of the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

docs-fresh: $(VENV)/.dev ## whether the help texts in the documentation are the program's
	$(COG) --check --check-fail-msg="run 'make help-docs'" $(PAGES)

test-slow: $(VENV)/.dev ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu-check: $(VENV)/.dev ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu -rs

docs: $(VENV)/.dev ## the documentation as HTML in docs/_build/html, warnings as errors
	$(BIN)/sphinx-build -q -E -W --keep-going docs docs/_build/html
	@echo "The documentation is $(CURDIR)/docs/_build/html/index.html"

help-docs: $(VENV)/.dev ## put the present help texts into the documentation
	$(COG) -r $(PAGES)

gallery: $(VENV)/.runtime ## make the pictures of docs/gallery.md again
	$(BIN)/python tools/gallery.py

bench: $(VENV)/.peers ## the benchmarks of docs/benchmarks.md
	$(BIN)/python -m benchmarks

clean: ## remove all that make made: .venv, the demo, built documentation, caches
	rm -rf $(VENV) demo docs/_build .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis

# An interpreter that is gone or was replaced (an upgraded system) makes everything below it anew.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing ddpm into $(VENV); the first time this downloads PyTorch and takes a few minutes."
	$(INSTALL) --editable .
	@touch $@

# Dependency groups need pip 25.1, which Python 3.11 to 3.13 do not bring along.
$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) "pip>=25.1"
	$(INSTALL) --group dev
	@touch $@

# Without their dependencies: those that are needed are there, and torchvision would ask for another build of PyTorch.
$(VENV)/.peers: $(VENV)/.dev
	$(INSTALL) --no-deps --group peers
	@touch $@
