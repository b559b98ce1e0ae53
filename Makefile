# Everything that is done with this repository. `make` alone lists the targets. Rust, a C compiler and Python 3 with pip
# (for the model) are all that is needed; what else is missing is installed by cargo.

CARGO ?= cargo
PYTHON ?= python3
export PYTHON

# One build profile for all that CI does: dependencies are compiled once.
PROFILE = ci
# Which model: smollm2-135m-instruct, or gemma3-270m with ACCEPT_LICENCE=yes (without it, the terms are shown).
MODEL = smollm2-135m-instruct
# Where `make train` writes and what `make serve` and `make eval` use.
EDITOR_FOLDER = editors/$(MODEL)
# A log belongs to one model.
DATABASE = sqlite://data/$(if $(filter smollm2-135m-instruct,$(MODEL)),amend,$(MODEL)).db
# How many records `make eval` measures.
RECORDS = 500

# The model's file: what AMEND_MODEL names, else the one that is fetched on first use.
fetch = scripts/fetch-model $(MODEL) $(if $(ACCEPT_LICENCE),--accept-licence)
model = $${AMEND_MODEL:-$$($(fetch))}

.DEFAULT_GOAL := help
.PHONY: help serve test check fmt openapi train eval compare bench bench-generation bench-editing bench-training \
	bench-log bench-latency bench-sizes bench-overload bench-soak check-monitoring check-deploy check-cuda deny fuzz model clean-data \
	clean rust \
	compiler nextest

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: rust compiler ## Fetch the model if need be, build, and run the service on 127.0.0.1:8080, with its log in data/ (MODEL=gemma3-270m)
	@model="$(model)" && [ -n "$$model" ] && mkdir -p data && $(CARGO) build --release && \
		AMEND_MODEL="$$model" AMEND_EDITOR="$${AMEND_EDITOR:-$(EDITOR_FOLDER)}" \
		AMEND_DATABASE="$${AMEND_DATABASE:-$(DATABASE)}" $(CARGO) run --release --quiet -- serve

test: rust compiler nextest ## Run every test, on the real model too
	@model="$$(scripts/fetch-model)" && \
		AMEND_TEST_MODEL="$$model" $(CARGO) nextest run --cargo-profile $(PROFILE) && \
		AMEND_TEST_MODEL="$$model" $(CARGO) test --profile $(PROFILE) --doc

check: rust compiler deny ## Check dependencies, format, lints and documentation; warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --profile $(PROFILE) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --profile $(PROFILE) --no-deps

deny: rust ## Check the dependencies: licences, duplicates, sources, vulnerabilities (deny.toml)
	scripts/deny

check-cuda: rust compiler ## Compile with the feature cuda, by an nvcc from PyPI; slow, and needs no GPU: make check-cuda [ARGS="--jobs 1"]
	CARGO="$(CARGO)" scripts/check-cuda $(ARGS)

fuzz: rust compiler ## Fuzz what reads bytes from outside: make fuzz [ARGS="--seconds 600 gguf"]
	scripts/fuzz $(ARGS)

fmt: rust ## Format the code
	$(CARGO) fmt

openapi: rust compiler ## Write openapi/openapi.json from the code
	$(CARGO) run --profile $(PROFILE) --quiet -- openapi > openapi/openapi.json.new
	mv openapi/openapi.json.new openapi/openapi.json

train: rust compiler ## Train the editor: make train DATA=train.json VALIDATION=val.json [TEXT=text.txt] [ARGS="--steps 100"]
	@[ -n "$(DATA)" ] && [ -n "$(VALIDATION)" ] || { \
		echo 'usage: make train DATA=train.json VALIDATION=val.json [TEXT=text.txt] [ARGS="..."]' >&2; exit 2; }
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(CARGO) run --release --quiet -- train --model "$$model" --data "$(DATA)" --validation "$(VALIDATION)" \
		$(if $(TEXT),--running-text "$(TEXT)") --out "$(EDITOR_FOLDER)" $(ARGS)

eval: rust compiler ## Measure the editor beside fine-tuning: make eval DATA=val.json [RECORDS=500] [TEXT=text.txt] [ARGS="..."]
	@[ -n "$(DATA)" ] || { echo 'usage: make eval DATA=val.json [RECORDS=500] [TEXT=text.txt] [ARGS="..."]' >&2; exit 2; }
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(CARGO) run --release --quiet -- eval --model "$$model" --data "$(DATA)" --records $(RECORDS) \
		--editor "$(EDITOR_FOLDER)" --editor finetune --editor finetune-kl \
		$(if $(TEXT),--running-text "$(TEXT)") $(ARGS)

compare: rust compiler ## Measure editors for docs/editors.md: make compare DATA=folder
	@[ -n "$(DATA)" ] || { echo 'usage: make compare DATA=folder-with-counterfact-and-wikitext2 [ARGS="..."]' >&2; exit 2; }
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) scripts/compare-editors --model "$$model" --data "$(DATA)" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench: rust compiler ## Measure edits, generation, memory and replay over HTTP: make bench [ARGS="--threads 2"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) scripts/bench --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-generation: rust compiler ## Measure generation beside llama.cpp: make bench-generation [ARGS="--write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/generation.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-editing: rust compiler ## Measure edits beside PyTorch, which it installs: make bench-editing [ARGS="--write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/editing.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-training: rust compiler ## Measure training beside PyTorch, which it installs: make bench-training DATA=train.json [ARGS="--write"]
	@[ -n "$(DATA)" ] || { echo 'usage: make bench-training DATA=train.json [ARGS="..."]' >&2; exit 2; }
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/training.py --model "$$model" --data "$(DATA)" $(ARGS)

bench-log: rust compiler ## Measure taking back and starting with 1,000 edits: make bench-log [ARGS="--write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/log.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-latency: rust compiler ## Measure how long clients wait for tokens: make bench-latency [ARGS="--write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/latency.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-sizes: rust compiler ## Measure the cost of an edit against the model's size, with random weights too: make bench-sizes [ARGS="--write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/sizes.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-overload: rust compiler ## Measure what a crowd ten times too large gets: make bench-overload [ARGS="--write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/overload.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

bench-soak: rust compiler ## Keep a service at full load for an hour: make bench-soak [ARGS="--minutes 60 --write"]
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) bench/soak.py --model "$$model" --editor "$(EDITOR_FOLDER)" $(ARGS)

check-monitoring: rust compiler ## Check dashboards and alerts with a Prometheus that scrapes a service under load (Debian: prometheus)
	@model="$(model)" && [ -n "$$model" ] && $(CARGO) build --release && \
		$(PYTHON) scripts/check-monitoring --binary "$${CARGO_TARGET_DIR:-target}/release/amend" --model "$$model" $(ARGS)

check-deploy: ## Check docker/ and deploy/ without an engine or a cluster: make check-deploy [ARGS="--npm FOLDER --strict"]
	@$(PYTHON) scripts/check-deploy $(ARGS)

model: ## Fetch the model if need be and print its path
	@$(fetch)

clean-data: ## Delete the log in data/, with every edit in it
	rm -f data/amend.db data/amend.db-wal data/amend.db-shm

clean: rust ## Delete what was built
	$(CARGO) clean

# What must be there, with words for where it is not.

rust:
	@command -v $(CARGO) >/dev/null 2>&1 || { \
		echo "Rust is missing: there is no $(CARGO). Install it from https://rustup.rs and open a new shell." >&2; exit 1; }

compiler:
	@command -v "$${CC:-cc}" >/dev/null 2>&1 || { \
		echo "A C compiler is missing: there is no $${CC:-cc}. Install gcc or clang (Debian: apt install build-essential; macOS: xcode-select --install)." >&2; exit 1; }

nextest: rust
	@$(CARGO) nextest --version >/dev/null 2>&1 || { \
		echo "Installing the test runner, cargo-nextest, once." >&2; $(CARGO) install --locked cargo-nextest; }
