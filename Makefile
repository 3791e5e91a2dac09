# `make help` lists every target.
SHELL := /bin/bash
PYTHON ?= python3
UV := .venv/bin/uv
RUN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: bench help setup check test faults faults-long demo up clean bench-gateway bench-budget vllm test-vllm bench-vllm demo-vllm race

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

.venv/.ready: pyproject.toml uv.lock
	@command -v $(PYTHON) >/dev/null || { echo "Taximeter needs Python 3.11 or newer ($(PYTHON) was not found)"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Taximeter needs Python 3.11 or newer; set PYTHON=python3.12, say"; exit 1; }
	@test -x $(UV) || { $(PYTHON) -m venv .venv && $(RUN)/python -m pip install -q uv; }
	@$(UV) sync --locked --all-extras --inexact -q
	@touch $@

setup: .venv/.ready ## Create .venv with everything, from the lock file

check: setup ## Lint, types and import direction
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

test: setup ## The tests, on the embedded stack
	$(RUN)/pytest $(AT_ONCE) -m "not kafka and not traces and not stripe_live and not vllm and not browser and not focus_validator and not faults"

# Most tests wait for processes: several files at once, each with a stack of its own. `make test AT_ONCE=` runs one after the other.
AT_ONCE ?= -n 4 --dist loadfile

faults: setup ## Kill, pause and starve the real processes, then compare exactly (fixed seed; Java and Maven)
	$(RUN)/pytest -n 2 -m faults tests/faults tests/integration

race: setup ## Eight gateways, five budgets at 99%, a gateway and the keeper killed in the middle (Apache Kafka)
	$(RUN)/pytest -s -m race --broker=apache tests/e2e

MINUTES ?= 30
faults-long: setup ## The same by random seeds for MINUTES, one line a round
	$(RUN)/python -m tests.faults.long_run --minutes $(MINUTES)

demo: setup ## The whole pipeline, from a request to a proven invoice
	$(RUN)/taximeter demo

up: setup ## Start the embedded stack and keep it running
	$(RUN)/taximeter up

bench: setup ## The metering path: the limit, ours, faust and quixstreams on Apache Kafka; the tables of docs/benchmarks.md
	$(RUN)/python -m tests.benchmarks --write

clean: ## Remove caches and the environment
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A fixed version: the release 1.107.0 is reported to have been compromised.
LITELLM := litellm[proxy]==1.108.7
LITELLM_PYTHON := .cache/litellm-venv/bin/python

.cache/litellm-venv/.ready: Makefile | setup
	@$(UV) venv -q --clear .cache/litellm-venv && $(UV) pip install -q -p $(LITELLM_PYTHON) '$(LITELLM)'
	@touch $@

bench-gateway: .cache/litellm-venv/.ready ## Our gateway beside LiteLLM's proxy: speed, latency, CPU
	$(RUN)/python -m tests.benchmarks.gateway_bench --litellm-python $(LITELLM_PYTHON)

bench-budget: .cache/litellm-venv/.ready ## Budgets beside LiteLLM's: who lets how much through
	$(RUN)/python -m tests.benchmarks.budget_race --litellm-python $(LITELLM_PYTHON)
	$(RUN)/python -m tests.benchmarks.budget_delays

vllm: setup ## An environment with vLLM for CPUs and tiny models, in .cache
	@.ci/vllm/setup.sh

test-vllm: vllm ## The suite on real vLLM
	@.ci/vllm/older.sh
	$(RUN)/pytest -m vllm tests/vllm

bench-vllm: vllm ## What the plugin costs a vLLM server
	PYTHONPATH=. .cache/vllm-venv/bin/python -m tests.benchmarks.vllm_overhead

demo-vllm: vllm ## One turn over three vLLM workers, and what each hop cost
	$(RUN)/python -m taximeter.demo.vllm_turn
