# Causeway's front door: `make run` to try it, `make test` for everything that is checked.
# All of it runs in .venv, from the locked files; nothing is installed into the system but by `test` as root (see below).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test demo soak lint fmt settings lock system clean image matrix audit

# The first Python that is new enough. Set PYTHON=… to choose another.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && { command -v $$p; break; }; done)
BIN := .venv/bin
REPLICAS ?= 3
BASE_PORT ?= 8090
MINUTES ?= 10

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 10

# --- Set-up -------------------------------------------------------------------------------------------------------

setup: .venv/.ready ## Make .venv from the locked requirements (quick when nothing changed)

.venv/.ready: requirements.txt requirements-dev.txt
	@[ -n "$(PYTHON)" ] || { echo "Causeway needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv
	@echo "Installing the locked requirements into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip uninstall --quiet --yes setuptools 2>/dev/null # Python 3.11 puts an old one there; nothing here needs it
	@touch $@

lock: ## Write requirements*.txt from pyproject.toml (after changing a dependency)
	@[ -x .venv/lock/bin/pip-compile ] || { "$(PYTHON)" -m venv .venv/lock && .venv/lock/bin/pip install --quiet pip-tools==7.6.2; }
	@.venv/lock/bin/pip-compile $(PIP_COMPILE) --output-file requirements.txt pyproject.toml
	@.venv/lock/bin/pip-compile $(PIP_COMPILE) --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
	@sed -i '1i # Written by `make lock` from pyproject.toml: change it there.' requirements.txt requirements-dev.txt

# No index or path of the machine that locked goes into the files.
PIP_COMPILE := --quiet --generate-hashes --strip-extras --allow-unsafe --no-header --no-annotate \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options

# --- Use ----------------------------------------------------------------------------------------------------------

run: setup ## Start a cluster of three replicas on 127.0.0.1:8090 and up
	@exec $(BIN)/python manage.py run_cluster --replicas $(REPLICAS) --base-port $(BASE_PORT)

demo: setup ## Show what the store promises, on a cluster of its own
	@exec $(BIN)/python manage.py demo

soak: setup ## Run random faults against real replicas for MINUTES (10)
	@exec $(BIN)/python -m tools.soak --minutes $(MINUTES)

# --- Checks -------------------------------------------------------------------------------------------------------

lint: setup ## Format, rules, types, who imports whom, and the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

fmt: setup ## Format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

settings: setup ## Write docs/settings.md from the declarations of the settings
	$(BIN)/python -m tools.settings_page

test: setup system lint ## All checks, then all tests (PYTEST_ARGS=… to choose)
	$(BIN)/pytest $(PYTEST_ARGS)

matrix: setup ## The tests under each Python of 3.11 to 3.13 that is here (MATRIX=3.13 PYTEST_ARGS=… to choose)
	@exec $(BIN)/python -m tools.matrix $(MATRIX) -- $(PYTEST_ARGS)

# Containers are mounted and unmounted: in a mount namespace of its own nobody else sees that, and nothing is left.
image: SYSTEM := podman:podman crun:crun debootstrap:debootstrap ip:iproute2 iptables:iptables
image: setup system ## Build the image and try three replicas of it (Debian and root; see docs/container.md)
	unshare --mount $(BIN)/pytest tests/image/image_checks.py $(PYTEST_ARGS)

audit: setup ## Known vulnerabilities of what is locked; asks the package index, fails where that cannot tell
	@[ -x .venv/audit/bin/pip-audit ] || { $(BIN)/python -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit==2.10.1; }
	.venv/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
		--requirement requirements.txt --requirement requirements-dev.txt

# Programs that tests drive: a browser for the dashboard, network namespaces for partitions, wrk for the benchmark.
SYSTEM := chromium:chromium chromedriver:chromium-driver ip:iproute2 iptables:iptables wrk:wrk
system:
	@missing=(); for pair in $(SYSTEM); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair##*:}"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing for the tests: $${missing[*]}"; \
			apt-get update -qq; \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
		else \
			echo "The tests need: $${missing[*]} (Debian: sudo apt-get install $${missing[*]})" >&2; exit 1; \
		fi; fi

clean: ## Remove what was made here
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
