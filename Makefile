# From a fresh clone, as root, on Debian 12 or later with nothing prepared:
#   make demo    sets up, then shows the main job on real parts
#   make test    sets up, then runs all tests
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clean test test-acceptance test-kill check format clean

BIN := .venv/bin
PYTHON ?= /usr/bin/python3
HOOK := /usr/lib/oneroot/start-hook

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/.installed $(HOOK) ## Install what oneroot needs on this machine, and oneroot into .venv/

.venv/.packages: tools/install-packages
	tools/install-packages
	@mkdir -p .venv && touch $@

.venv/.installed: .venv/.packages pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# The start hook runs as root at a fixed path: never out of a work tree or a virtual environment.
$(HOOK): src/hook/start-hook.c | .venv/.packages
	gcc -O2 -static -Wall -Wextra -Werror -o build-start-hook $<
	install -D -o root -g root -m 0755 build-start-hook $@
	@rm -f build-start-hook

demo: setup ## Show the main job: 100 containers, one real security update, the proof
	$(BIN)/python examples/demo/demo.py run

demo-clean: ## Remove what the demo made
	$(BIN)/python examples/demo/demo.py clean

test: setup ## Run all tests, as root
	ONEROOT_TESTS_MUST_RUN=1 $(BIN)/python -m pytest tests --ignore tests/root/acceptance --durations=15

test-acceptance: setup ## Run the tests of bad input, damage, full disks and signals, as root
	ONEROOT_TESTS_MUST_RUN=1 $(BIN)/python -m pytest tests/root/acceptance

test-kill: setup ## Kill every changing command at 100 random moments
	ONEROOT_TESTS_MUST_RUN=1 $(BIN)/python -m pytest tests/root/kill/test_random_kills.py --random-kills 100

check: .venv/.installed ## Format, lint, types, imports, and the tests that need no root
	$(BIN)/ruff format --check src tests examples tools
	$(BIN)/ruff check src tests examples tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit

format: .venv/.installed ## Format the code
	$(BIN)/ruff format src tests examples tools
	$(BIN)/ruff check --fix src tests examples tools

clean: ## Remove what was built here; containers and bases stay
	rm -rf .venv build dist src/*.egg-info
