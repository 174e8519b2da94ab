# `make run` starts a cluster to try, and `make test` runs all checks and tests. `make help` lists all targets.
# Python packages are installed into .venv only, from the locked requirements. System packages are installed only by
# targets that depend on `system`, and only by root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test demo soak simulate hostile lint fmt settings docs lock system clean image monitoring matrix audit

# The first Python on PATH that is new enough. Set PYTHON=… to choose another one.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && { command -v $$p; break; }; done)
BIN := .venv/bin
MINUTES ?= 10
INPUTS ?= 2000
RUNS ?= 20000
SEED ?= 1
# What network namespaces need, as program:package (see `system`).
NETNS := ip:iproute2 iptables:iptables unshare:util-linux mount:mount

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 12

# --- Installation -----------------------------------------------------------------------------------------------------

setup: .venv/.ready ## Create .venv with everything to work on Causeway, or update it

# What a replica needs, for `make run`. requirements-dev.txt contains the same versions.
.venv/.runs: requirements.txt
	@[ -n "$(PYTHON)" ] || { echo "Causeway needs Python 3.11 or newer with venv: sudo apt-get install python3-venv" >&2; exit 1; }
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv .venv
	@echo "Installing the locked requirements into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@# The Python client is used from where it lies. The path is relative to the directory of installed packages.
	@echo ../../../../clients/python/src > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/causeway-client.pth"
	@touch $@

.venv/.ready: .venv/.runs requirements-dev.txt
	@echo "Installing the development tools into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

lock: ## Write requirements*.txt from pyproject.toml. Run it after a change of a dependency
	@[ -x .venv/lock/bin/pip-compile ] || { "$(PYTHON)" -m venv .venv/lock && .venv/lock/bin/pip install --quiet pip-tools==7.6.2; }
	@.venv/lock/bin/pip-compile $(PIP_COMPILE) --output-file requirements.txt pyproject.toml
	@.venv/lock/bin/pip-compile $(PIP_COMPILE) --extra dev --constraint requirements.txt --output-file requirements-dev.txt pyproject.toml
	@sed -i '1i # Written by `make lock` from pyproject.toml: change it there.' requirements.txt requirements-dev.txt
	@.venv/lock/bin/pip-compile $(PIP_COMPILE) --output-file requirements-docs.txt requirements-docs.in
	@sed -i '1i # Written by `make lock` from requirements-docs.in: change it there.' requirements-docs.txt
	@for file in requirements*.txt; do echo "Checking that $$file installs on Python $(OLDEST_PYTHON)"; \
		.venv/lock/bin/pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --no-deps --target .venv/lock/none \
		--python-version $(OLDEST_PYTHON) --only-binary :all: --require-hashes -r $$file; done

# Debian 12 has Python 3.11.2. pip-compile runs with another Python, and does not notice packages that need a later one.
OLDEST_PYTHON := 3.11.0

# The options keep package indexes and paths of this machine out of the files.
PIP_COMPILE := --quiet --generate-hashes --strip-extras --allow-unsafe --no-header --no-annotate \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options

# --- Use --------------------------------------------------------------------------------------------------------------

run: .venv/.runs ## Start a cluster on 127.0.0.1:8090 and the following ports (REPLICAS=3, BASE_PORT=8090)
	@exec $(BIN)/python manage.py run_cluster $(if $(REPLICAS),--replicas $(REPLICAS)) $(if $(BASE_PORT),--base-port $(BASE_PORT))

demo: .venv/.runs ## Demonstrate the guarantees of the store on a temporary cluster (BASE_PORT=8190)
	@exec $(BIN)/python manage.py demo $(if $(BASE_PORT),--base-port $(BASE_PORT))

soak: SYSTEM := $(NETNS)
soak: setup system ## Run random faults against real replicas (MINUTES=10)
	@exec $(BIN)/python -m tools.netns $(BIN)/python -m tools.soak --minutes $(MINUTES)

simulate: setup ## Simulate clusters with faults (RUNS=20000 from SEED=1)
	@exec $(BIN)/python manage.py simulate --seed $(SEED) --runs $(RUNS)

hostile: setup ## Send hostile inputs to real replicas (INPUTS=2000 to each of two clusters)
	@exec $(BIN)/python -m tools.hostile --inputs $(INPUTS)

# --- Checks -----------------------------------------------------------------------------------------------------------

lint: setup ## Check format, lint rules, types, imports between packages, and the Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

fmt: setup ## Format the code, and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

settings: setup ## Write docs/settings.md from the declarations of the settings
	$(BIN)/python -m tools.settings_page

docs: .venv/docs/.ready ## Build the documentation as a site with search, and llms.txt: build/docs/site
	@.venv/docs/bin/python -m tools.docs_site

# An environment of its own: nothing else needs these packages.
.venv/docs/.ready: requirements-docs.txt
	@[ -n "$(PYTHON)" ] || { echo "Causeway needs Python 3.11 or newer with venv: sudo apt-get install python3-venv" >&2; exit 1; }
	@[ -x .venv/docs/bin/python ] || "$(PYTHON)" -m venv .venv/docs
	@.venv/docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@touch $@

# Tests of partitions make network namespaces. tools.netns gives an ordinary user the right to do so. Three tests run at a
# time, because most of them wait for replicas.
test: setup system lint .venv/.packages ## Run all checks, then all tests (PYTEST_ARGS=… selects tests)
	$(BIN)/python -m tools.netns $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# What tests of the installation install. An ordinary user's network namespaces do not reach the package index.
.venv/.packages: requirements.txt
	@echo "Downloading packages for tests of the installation into .venv/packages (once)"
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --require-hashes -r requirements.txt --dest .venv/packages
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary Django \
		"Django==$$($(BIN)/python -c 'import django; print(django.__version__)')" --dest .venv/packages
	@touch $@

matrix: setup ## Run tests with each installed Python from 3.11 to 3.13 (MATRIX=3.13 selects one, DJANGO=6.0 another Django)
	@exec $(BIN)/python -m tools.matrix $(if $(DJANGO),--django $(DJANGO)) $(MATRIX) -- $(PYTEST_ARGS)

# A private mount namespace hides the mounts of containers from the machine, and removes them at the end.
image: SYSTEM := podman:podman crun:crun debootstrap:debootstrap $(NETNS)
image: setup system ## Build the container image and test three replicas of it (needs Debian and root)
	@[ "$$(id -u)" = 0 ] || { echo "make image mounts file systems and needs root: sudo make image" >&2; exit 1; }
	unshare --mount $(BIN)/pytest tests/image/test_image.py $(PYTEST_ARGS)

# Debian's package prometheus has promtool and takes 330 MB; under systemd it also starts a service on port 9090. So
# `make test` does without it: its tests parse the same files and check the names in them.
monitoring: SYSTEM := promtool:prometheus
monitoring: setup system ## Check rules and dashboard in deploy/monitoring with Prometheus's own tools
	$(BIN)/pytest tests/monitoring/test_prometheus.py $(PYTEST_ARGS)

audit: setup ## Look up known vulnerabilities of the locked packages. Needs the package index
	@[ -x .venv/audit/bin/pip-audit ] || { $(BIN)/python -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit==2.10.1; }
	.venv/audit/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off \
		--requirement requirements.txt --requirement requirements-dev.txt --requirement requirements-docs.txt

# Programs that a target needs, as program:package. Tests use a browser for the dashboard, network namespaces for
# partitions, openssl for certificates, and wrk for the benchmark.
SYSTEM := chromium:chromium $(NETNS) openssl:openssl wrk:wrk
system:
	@missing=(); for pair in $(SYSTEM); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" >/dev/null || missing+=("$${pair##*:}"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing system packages: $${missing[*]}"; \
			apt-get update -qq; \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
		else \
			echo "System packages are missing: sudo apt-get install $${missing[*]}" >&2; exit 1; \
		fi; fi

clean: ## Remove .venv, caches and build results
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
