# Each target sets up what it needs on the way (uv, the locked environment, a broker): see deploy/setup.
.DEFAULT_GOAL := help
SHELL := bash

# Looked up when a recipe runs, not before: `environment` may have just installed it.
UV = $(shell deploy/setup where-uv)
RUN = $(UV) run --locked

.PHONY: help setup environment broker check test demo boxes format bench fuzz faults schemas clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/\1\t\2/p' Makefile | expand -t 12

setup: environment broker  ## Install what is missing: uv, the locked environment, a broker

environment:
	@deploy/setup environment

broker:
	@deploy/setup broker

check: environment  ## Check format, lint, types and imports
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports --no-cache

test: environment broker  ## Run all tests; ARGS="-k breaker" narrows them
	$(RUN) pytest $(ARGS)

demo: environment broker  ## See it work: tasks, failures and recovery against a real broker
	$(RUN) python -m demo

boxes: environment  ## Run compose.yaml in Docker: scaling, restarts, an upgrade, every alert; and the Kubernetes files
	WARREN_TEST_BOXES=1 $(RUN) --with 'kubernetes-validate==1.37.0' pytest tests/boxes $(ARGS)

format: environment  ## Format the code and fix what can be fixed
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

bench: environment broker  ## Measure the pool, throughput, the store, the gateway; ARGS="--rounds 3" for throughput
	$(RUN) python benchmarks/pool.py
	$(RUN) python benchmarks/throughput.py $(ARGS)
	$(RUN) python -m benchmarks.store
	$(RUN) python -m benchmarks.gateway

fuzz: environment broker  ## Send 100,000 inputs at their extremes; ARGS="--count 1000 --profile classic --seed 7"
	$(RUN) python -m tests.fuzz $(ARGS)

faults: environment broker  ## Break one thing at a time under a fleet; ARGS="--row worker-killed --tasks 500"
	$(RUN) python -m tests.faults $(ARGS)

schemas: environment  ## Write the JSON Schemas and the AsyncAPI document anew from the models
	$(RUN) warren schema --write schemas/

clean:  ## Delete the environment, caches and builds; brokers and their data stay
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
