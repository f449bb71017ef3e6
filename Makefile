# Everything a user or a developer does, each in one word. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
# Where this is set, every start compiles every import again; the program is slow without its bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo up test lint bench simulate lock
help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## make .venv from pinned, hashed requirements

.venv/uv: requirements/uv.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements/uv.txt
	@touch $@

.venv/installed: .venv/uv requirements/runtime.txt pyproject.toml
	@if [ -e .venv/installed-test ]; then rm .venv/installed-test; fi
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements/runtime.txt
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q payments_pipeline
	$(BIN)/python -c "from payments_pipeline.domain.pots import compile_kernels; compile_kernels()"
	@touch $@

.venv/installed-test: .venv/installed requirements/test.txt
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --require-hashes --no-deps --compile-bytecode -r requirements/test.txt
	@touch $@

demo: .venv/installed ## a season's first days end to end, on an embedded stack
	$(BIN)/payments-pipeline demo

up: .venv/installed ## everything running, the Dagster UI on 127.0.0.1:3000
	exec $(BIN)/payments-pipeline up

test: .venv/installed-test ## lint and all tests
	$(MAKE) lint
	@# As collected: ordered by their number of tests, the long single tests would come last, one after the other.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-test ## format, lint and types, warnings as errors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy checker/check_certificate.py

bench: .venv/installed-test ## measure; JSON lines
	$(BIN)/python -m benchmarks

SEEDS ?= 200
FROM ?= 0
simulate: .venv/installed-test ## worlds full of faults, SEEDS=n of them from seed FROM=n; prints figures and any failure
	$(BIN)/python -m simulation --seeds $(SEEDS) --from $(FROM)

UV_LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --no-header --no-annotate --python-version 3.11
lock: .venv/uv ## renew the pinned requirements
	$(UV_LOCK) requirements/uv.in -o requirements/uv.txt
	$(UV_LOCK) pyproject.toml requirements/build.in -o requirements/runtime.txt
	$(UV_LOCK) pyproject.toml requirements/build.in requirements/test.in -c requirements/runtime.txt -o requirements/test.txt
