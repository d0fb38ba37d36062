# What can be done here: `make help`. Everything it makes or fetches lies in target/ and .run/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# What tests/fetch-tools.sh has put there comes before what the machine has.
export PATH := $(CURDIR)/.run/tools/bin:$(PATH)

# What the binaries say they were built from and with. The same for every target: another value would
# build the crates that hold it again.
revision := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
cargo = EVENKEEL_REVISION='$(or $(revision),unknown)' EVENKEEL_RUSTC="$$(rustc --version | cut -d' ' -f2)" cargo

# What is built once and thrown away gains nothing from being prepared for the next change.
ifdef CI
export CARGO_INCREMENTAL := 0
endif

lab := target/debug/evenkeel-lab
lab_packages := .run/packages/made

##@ Use

.PHONY: up
up: ## watch this host: exporter, remediator in plan mode, Prometheus, Alertmanager; Ctrl-C ends it
	@$(call need_root,up)
	@tests/fetch-tools.sh build
	@$(call build_binaries)
	@exec $(lab) up

.PHONY: demo
demo: ## break a lab host's disk, service and container, and watch them heal (half a minute); ARGS=--stay leaves it running
	@$(call need_root,demo)
	@tests/fetch-tools.sh build
	@tests/fetch-tools.sh host
	@$(call build_binaries)
	@exec $(lab) demo $(ARGS)

##@ Test

.PHONY: test
test: ## everything, on real systemd, Docker, Redis, Prometheus and Alertmanager
	@$(call need_root,test)
	@tests/all.sh

.PHONY: check
check: toolchain format clippy unit ## what needs neither root nor Docker: format, clippy, unit tests

##@ Package

packages := .run/dist

.PHONY: deb
deb: ## Debian packages of both binaries, in .run/dist (some minutes: they are built small)
	@tests/fetch-tools.sh build
	@tests/fetch-tools.sh deb
	$(cargo) build --locked --profile dist --package evenkeel-exporter --package evenkeel-remediator
	packaging/deb/build.sh dist $(packages)
	@ls $(packages)/*.deb

.PHONY: dist
dist: deb ## the same, a tarball for any distribution, and SHA256SUMS
	packaging/tarball.sh dist $(packages)
	@cat $(packages)/SHA256SUMS

##@ The parts of `make test`

.PHONY: tools
tools: toolchain ## fetch what the lab starts, into .run/tools
	tests/fetch-tools.sh lab

.PHONY: build
build: ## build the binaries and the tests
	$(cargo) build --workspace --all-targets --features evenkeel-tests/lab

.PHONY: format
format: ## is everything formatted
	cargo fmt --all -- --check

.PHONY: clippy
clippy: ## no warnings
	$(cargo) clippy --workspace --all-targets --features evenkeel-tests/lab -- --deny warnings

# With the lab's feature, so that nothing is built twice; its tests are a part of their own.
.PHONY: unit
unit: export SCHEDULES = 10000
unit: ## unit and in-process tests: neither root nor Docker
	if cargo nextest --version >/dev/null 2>&1; then \
		$(cargo) nextest run --workspace --features evenkeel-tests/lab \
			--filterset 'not binary(=lab) and not test(/^fleet::simulation::/)' --no-fail-fast; \
	else \
		$(cargo) test --workspace --no-fail-fast; \
	fi

# So many random schedules; `make unit` runs 10,000 of them.
schedules ?= 100000

.PHONY: test-long
test-long: ## the remediator through random schedules of alerts, deaths and clocks; schedules=100000
	SCHEDULES=$(schedules) $(cargo) test --release --package evenkeel-remediator --lib -- schedules:: --nocapture

# As long as this for each parser. `make unit` gives them a second each.
fuzz_seconds ?= 20

.PHONY: fuzz
fuzz: ## feed parsers and exporter what nobody expects; fuzz_seconds=20 for each
	EVENKEEL_FUZZ_SECONDS=$(fuzz_seconds) nice -n 19 env \
		$(cargo) test --workspace --features evenkeel-tests/lab --test foreign_input --test hostile

.PHONY: alerts
alerts: ## promtool and amtool on rules, their tests, configurations and routes
	alerts/check.sh

# The same selection as `build`: another one would unify other features, and build much of it again.
.PHONY: lab-test
lab-test: ## the lab's tests only; ARGS=NAME for those named so
	@$(call need_root,lab-test)
	$(cargo) build --workspace --all-targets --features evenkeel-tests/lab
	@$(MAKE) $(lab_packages)
	$(cargo) test --workspace --features evenkeel-tests/lab --test lab -- $(ARGS)

# One after the other: each is a whole fleet.
.PHONY: simulation
simulation: ## fleets of 50 and 10,000 hosts in one process, on a real Redis; SEED=17 to draw the same again
	$(cargo) test --workspace --features evenkeel-tests/lab --lib -- \
		fleet::simulation:: --test-threads 1 --nocapture

# Of the binaries that the lab tries, as fast as can be: by the machine's gzip, for cargo-deb's own takes minutes.
$(lab_packages): $(wildcard target/debug/evenkeel-exporter target/debug/evenkeel-remediator */Cargo.toml) \
		$(shell find packaging alerts grafana -type f)
	packaging/deb/build.sh dev $(@D) --strip --fast --compress-type=gz --compress-system
	@touch $@

.PHONY: golden
golden: ## write tests/golden/exporter.prom anew: what the exporter publishes of a fixed state
	@$(call need_root,golden)
	$(cargo) build --workspace --all-targets --features evenkeel-tests/lab
	EVENKEEL_UPDATE_GOLDEN=1 $(cargo) test --workspace --features evenkeel-tests/lab --test lab -- golden

.PHONY: docs
docs: ## write the reference pages of docs/ and the schemas of packaging/ anew
	$(cargo) build --package evenkeel-exporter --package evenkeel-remediator
	target/debug/evenkeel-exporter generate schema >packaging/exporter.schema.json
	target/debug/evenkeel-remediator generate schema >packaging/remediator.schema.json
	EVENKEEL_UPDATE_DOCS=1 $(cargo) test --package evenkeel-tests --test reference

##@ Measure

.PHONY: bench
bench: ## what the two binaries cost, and what they do, beside floor and peers (40 minutes; BENCH=quick: 25); ARGS=PART for some
	@$(call need_root,bench)
	@tests/fetch-tools.sh build
	@tests/fetch-tools.sh lab
	$(cargo) build --release --workspace --bins --features evenkeel-tests/lab
	$(cargo) bench --package evenkeel-tests --features lab --bench bench -- $(ARGS)

##@ The rest

.PHONY: toolchain
toolchain: ## a C compiler and the pinned Rust toolchain
	@tests/fetch-tools.sh build

.PHONY: clean
clean: ## remove what was built, fetched and kept
	rm -rf --one-file-system -- '$(CURDIR)/target' '$(CURDIR)/.run'

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- what the targets above have in common ------------------------------------------------------------

need_root = [ "$$(id -u)" = 0 ] || { echo "make $(1) mounts disks and starts daemons of its own, which needs root: sudo make $(1)" >&2; exit 1; }
# On a terminal cargo shows how far it is.
build_binaries = echo "building evenkeel (the first time it takes some minutes)"; \
	$(cargo) build $$([ -t 2 ] || echo --quiet) --workspace --bins --features evenkeel-tests/lab
