# Everything the project does from a shell; `make` alone lists it. CI runs the same targets (.ci/run).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # one .venv, one pip; the tests run side by side by themselves

# The Python that makes .venv. 3.11 first: constraints.txt was resolved with it.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
# Test processes at once.
JOBS ?= 2

PY := .venv/bin/python
PACKAGES := ich_client ich_deploy ich_models ich_server ich_strategies

# Two states of one environment: what the programs need, and on top of it what their makers need. A stamp is older than
# pyproject.toml or constraints.txt exactly when .venv may be: pip then brings it up to date, and never starts anew.
RUNTIME := .venv/.runtime
DEV := .venv/.dev
INSTALL := $(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: help
help:  ## Show this list
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment

$(PY):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "ICH Federation needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 | head -1 || true)." >&2; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv

$(RUNTIME): pyproject.toml constraints.txt | $(PY)
	@echo "installing into .venv what the programs need (PyTorch is large: minutes on a slow line)"
	$(INSTALL) -e '.[client,server,networks,privacy]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(PY)
	@echo "installing into .venv what development needs (PyTorch and Ray are large: minutes on a slow line)"
	$(INSTALL) -e '.[client,server,networks,privacy,export,tracking,ray,dev]'
	@touch $(RUNTIME) $@

.PHONY: venv
venv: $(DEV)  ## Make or update .venv with everything (PYTHON=... chooses the interpreter)

# --- use

.PHONY: demo
demo: $(RUNTIME)  ## Generate three hospitals with head CT, train ICHPro across them, write runs/demo/results
	$(PY) -m ich_deploy.demo runs/demo --kind ct
	.venv/bin/ich-simulate runs/demo/ichpro.yaml --data runs/demo/data --out runs/demo/results

.PHONY: demo-tables
demo-tables: $(RUNTIME)  ## The same with tables alone, in seconds: runs/tables/results
	$(PY) -m ich_deploy.demo runs/tables
	.venv/bin/ich-simulate runs/tables/federation.yaml --data runs/tables/data --out runs/tables/results

.PHONY: benchmark
benchmark: $(DEV)  ## Measure what docs/ reports, into runs/benchmarks
	$(PY) benchmarks/run.py --out runs/benchmarks

.PHONY: schemas
schemas: $(DEV)  ## Write docs/schema anew, after a change to what a file may hold
	.venv/bin/ich-server schema federation > docs/schema/federation.schema.json
	.venv/bin/ich-client schema > docs/schema/hospital.schema.json
	.venv/bin/ich-server schema results > docs/schema/results.schema.json

# --- checks

.PHONY: test
test: $(DEV)  ## Run the fast tests (JOBS=2)
	$(PY) -m pytest -m "not slow" -n $(JOBS)

.PHONY: slow
slow: $(DEV)  ## Run the slow tests
	$(PY) -m pytest -m slow -n $(JOBS) --timeout 1800

.PHONY: lint
lint: $(DEV)  ## Check style and formatting
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.PHONY: types
types: $(DEV)  ## Check types
	.venv/bin/mypy

.PHONY: imports
imports: $(DEV)  ## Check that the import arrows point one way
	.venv/bin/lint-imports --no-logo

# Users get the wheel, not the source tree: a file missing from it shows only here. The wheel stands alone in an
# environment that borrows .venv's libraries but not its editable install (a borrowed folder's .pth files are not read).
.PHONY: wheel-test
wheel-test: $(DEV)  ## Build the wheel, install it apart, start its programs
	@room=$$(mktemp -d); trap 'rm -rf "$$room"' EXIT; \
	$(PY) -m build --wheel --outdir "$$room/dist" . >"$$room/build.log" 2>&1 || { cat "$$room/build.log" >&2; exit 1; }; \
	tops=$$($(PY) -m zipfile -l "$$room"/dist/*.whl | awk 'NR > 1 {sub("/.*", "", $$1); print $$1}' | sort -u | grep -v '\.dist-info$$' | paste -sd ' '); \
	[ "$$tops" = "$(PACKAGES)" ] || { echo "the wheel holds '$$tops', not '$(PACKAGES)'" >&2; exit 1; }; \
	$(PY) -m venv --without-pip "$$room/venv"; \
	$(PY) -m pip --disable-pip-version-check --quiet --python "$$room/venv/bin/python" install --no-deps "$$room"/dist/*.whl; \
	libraries='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(PY) -c "$$libraries" > "$$("$$room/venv/bin/python" -c "$$libraries")/borrowed.pth"; \
	cd "$$room"; \
	for package in $(PACKAGES); do \
	  venv/bin/python -c "import $$package; assert 'site-packages' in $$package.__file__, $$package.__file__"; done; \
	for program in ich-client ich-server ich-simulate; do \
	  venv/bin/$$program --help >help.txt 2>&1 || { cat help.txt >&2; exit 1; }; echo "$$program --help: well"; done

# --- tidy

.PHONY: clean
clean:  ## Remove what tests, tools and runs left behind (keeps .venv)
	rm -rf dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find $(wildcard shared_models strategies client server deploy tests benchmarks examples) -name __pycache__ -type d -prune -exec rm -rf {} +
