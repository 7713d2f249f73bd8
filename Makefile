# Each target sets up what it needs; what is there already is left alone.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo serve test bench lint build images clients fuzz chaos
export PATH := $(PATH):$(HOME)/.cargo/bin

SOLVER ?= sleeper
SLEEPER := simcore/services/comp/itis/sleeper
TARGET := $(or $(CARGO_TARGET_DIR),target)
SOLVERD := $(TARGET)/debug/solverd
RELEASE := $(TARGET)/release/solverd

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: ## Start a service, run the tutorial job on it, show progress and results, stop (SOLVER=calculix: a finite-element job)
	@scripts/rust.sh
	@scripts/docker.sh
	@scripts/images.sh $(SOLVER)
	@scripts/python.sh >/dev/null
	cargo build --locked --package solverd --bin solverd
	@scripts/demo.sh $(SOLVER)

serve: ## Start a service with the sleeper on it and stay; data in ./data, settings: see README.md
	@scripts/rust.sh
	@scripts/docker.sh
	@scripts/images.sh sleeper
	cargo build --locked --package solverd --bin solverd
	-$(SOLVERD) solvers publish $(SLEEPER):2.0.2 $(SLEEPER):2.1.1 $(SLEEPER):2.1.6 solvers/studies/*.json
	@exec $(SOLVERD) serve

# The client suite uses the program that `cargo test` has built: a build of its own would compile it again.
test: ## Run all checks and tests
	@scripts/rust.sh
	@scripts/docker.sh
	@scripts/images.sh all
	@scripts/python.sh >/dev/null
	@scripts/postgres.sh >/dev/null
	@$(MAKE) --no-print-directory checks
	url=$$(scripts/postgres.sh) && REQUIRE_POSTGRES=1 SOLVERD_TEST_POSTGRES_URL=$$url cargo test --locked --workspace
	python=$$(scripts/python.sh) && SOLVERD_BIN=$(SOLVERD) $$python -m pytest tests/client
	SOLVERD_BIN=$(SOLVERD) clients/check.sh
	SOLVERD_BIN=$(SOLVERD) scripts/fuzz.sh 5
	python=$$(scripts/python.sh) && SOLVERD_BIN=$(SOLVERD) $$python tests/chaos/chaos.py --cycles 7
	url=$$(scripts/postgres.sh) && python=$$(scripts/python.sh) && CHAOS_POSTGRES_URL=$$url SOLVERD_BIN=$(SOLVERD) $$python tests/chaos/chaos.py --cycles 8

clients: ## Generate the clients anew from openapi/openapi.json and compile them
	@clients/generate.sh
	@clients/check.sh compile

FUZZ ?= 200
fuzz: ## Fuzz the API on both databases (FUZZ=examples per operation)
	@scripts/rust.sh
	@scripts/docker.sh
	@scripts/images.sh sleeper
	cargo build --locked --package solverd --bin solverd
	@SOLVERD_BIN=$(SOLVERD) scripts/fuzz.sh $(FUZZ) $$RANDOM

CHAOS ?= 100
chaos: ## Do random faults under a load of jobs, on both databases, and print the balance (CHAOS=cycles on each)
	@scripts/rust.sh
	@scripts/docker.sh
	@scripts/images.sh sleeper
	cargo build --locked --package solverd --bin solverd
	@python=$$(scripts/python.sh) && SOLVERD_BIN=$(SOLVERD) $$python tests/chaos/chaos.py --cycles $(CHAOS)
	@url=$$(scripts/postgres.sh) && python=$$(scripts/python.sh) && CHAOS_POSTGRES_URL=$$url SOLVERD_BIN=$(SOLVERD) $$python tests/chaos/chaos.py --cycles $(CHAOS)

bench: build ## Time jobs beside the engine's own runs, log lines on their way to readers, requests beside FastAPI, and long lists
	@scripts/docker.sh
	@scripts/images.sh all
	@cargo bench --locked --package solverd --bench jobs
	@python=$$(scripts/python.sh) && SOLVERD_BIN=$(RELEASE) scripts/with_service.sh $$($$python scripts/bench_logs.py image) -- $$python scripts/bench_logs.py
	@url=$$(scripts/postgres.sh) && twin=$$(scripts/python.sh api/benches/twin) && \
		SOLVERD_TEST_POSTGRES_URL=$$url TWIN_PYTHON=$$twin cargo bench --locked --package solverd --bench requests --bench lists

lint: ## Check format, lints and documentation
	@scripts/rust.sh
	@$(MAKE) --no-print-directory checks

.PHONY: checks
checks:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps

build: ## Build target/release/solverd
	@scripts/rust.sh
	cargo build --locked --release --package solverd --bin solverd

images: ## Build the example solvers into the local Docker engine
	@scripts/images.sh all
