# Cellwall. `make` alone lists what there is; `make demo` and `make test` set up all they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV_VERSION := 0.13.9
UV := build/uv/bin/uv
PY := .venv/bin/python
RUN := $(UV) run --frozen --no-sync

# A fleet is a dozen Python processes, and compiling what they import costs more than all else that they do to start.
# Where the shell keeps Python from writing bytecode beside the sources, it is kept in build/.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/build/bytecode
endif

.PHONY: help setup demo up down status pulumi test test-unit check format bench-router bench-provision bench-fairness bench-cell bench-driver bench-noisy bench-move noisy-neighbour tools clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One stamp per lock file: setup costs nothing when nothing changed.
setup: build/.setup ## make the environment (.venv) from uv.lock

build/.setup: uv.lock pyproject.toml | $(UV)
	@$(UV) sync --frozen --quiet
	@touch $@

$(UV):
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Cellwall needs Python 3.11 or newer as python3")'
	@mkdir -p build
	@echo "setting up: uv $(UV_VERSION) in build/uv, then the pinned packages in .venv"
	@python3 -m venv build/uv || { rm -rf build/uv; \
	  echo "python3 has no venv module: install it (Debian: apt-get install python3-venv)" >&2; exit 2; }
	@build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

demo: setup ## a whole fleet for a minute or two: cell zero left, traffic, a live move, a new cell, kills, and the books
	@$(PY) -m loadtest.demo $(ARGS)

up: setup ## start a fleet on loopback, leave it running and print where everything listens (ZERO=1: with an old shop)
	@$(PY) -m infra.local up $(if $(ZERO),--zero) $(ARGS)

down: setup ## stop the fleet of `make up` and remove its data, also after a crash
	@$(PY) -m infra.local down $(ARGS)

status: setup ## show the fleet of `make up`: processes, ports, ready-made commands
	@$(PY) -m infra.local status $(ARGS)

pulumi: setup ## find the Pulumi CLI, or install it into a cache folder (compiled where it cannot be downloaded)
	@$(PY) -m infra.pulumi_cli install

# Tests of servers and stacks wait a good part of their time: two at a time take little longer than one. JOBS=0 is one
# process, for debuggers.
JOBS ?= 2

test: setup ## run all tests on real PostgreSQL, Redis and processes (ARGS="FILE -k NAME" JOBS=0: some, in one process)
	@$(PY) -m pytest -n $(JOBS) $(ARGS)

test-unit: setup ## run the unit tests alone (no sockets, seconds)
	@$(PY) -m pytest tests/unit tests/architecture $(ARGS)

check: setup ## format, lint, types, import rules and the Dockerfile
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) hadolint infra/images/Dockerfile

format: setup ## rewrite the code in house format
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

tools: ## find or install what only benchmarks need: nginx and wrk, from Debian
	@for tool in nginx:nginx-light wrk:wrk; do \
	  command -v $${tool%%:*} >/dev/null && continue; \
	  command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] || { \
	    echo "make bench-router needs $${tool%%:*} on PATH (Debian: apt-get install $${tool##*:})" >&2; exit 2; }; \
	  echo "installing $${tool##*:}"; \
	  apt-get install -y -qq $${tool##*:} >/dev/null 2>&1 \
	    || { apt-get update -qq && apt-get install -y -qq $${tool##*:} >/dev/null; }; \
	done

bench-router: setup tools ## CPU per request of the router beside nginx and Envoy
	@$(UV) sync --frozen --quiet --group bench
	@$(PY) -m loadtest.bench.router $(ARGS)

bench-provision: pulumi ## how long cells take to come, their memory and resources: this machine, AWS against a double
	@$(PY) -m loadtest.bench.provision $(ARGS)

noisy-neighbour: setup ## four noisy tenants beside quiet ones: walls on, walls off, and a shared stack; a report in three minutes
	@$(PY) -m loadtest.lab run noisy-short --peer $(ARGS)

bench-noisy: setup ## victims' latency and errors beside every kind of aggressor, median of three runs (ARGS=--full: all)
	@$(PY) -m loadtest.bench.noisy $(ARGS)

bench-move: setup ## write gaps, copy rate and times of moves under load, beside published figures (ARGS=--quick)
	@$(PY) -m loadtest.bench.move $(ARGS)

bench-driver: setup ## the load that the lab's driver can honestly offer on this machine
	@$(PY) -m loadtest.bench.driver $(ARGS)

bench-fairness: setup ## CPU per request of the wall between tenants, on, observing and off
	@$(PY) -m loadtest.bench.fairness $(ARGS)

bench-cell: setup ## CPU of each kind of request in every process of a cell, beside a plain shared stack
	@$(PY) -m loadtest.bench.cell $(ARGS)

clean: down ## stop the fleet and remove what was built
	@rm -rf build .venv
