# Every target sets up what it needs: .venv with the package (editable) and the versions in constraints.txt.
PYTHON ?= python3
EXTRAS := onnxruntime-gpu,report,constraints,serve,score,ray,eval,sweep,workbench,test
BIN := .venv/bin
READY := .venv/.ready
CHECKED := edgeblt $(wildcard tests tools benchmarks)

# ONNX Runtime must tell nobody, where a test or benchmark imports it before edgeblt does, either.
export ORT_DISABLE_TELEMETRY ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test levels lint bench slow browser-tests examples npm fuzz cuda native-tests fuzz-native venv wheel clean

help:
	@echo "make demo   export, validate, time and run the bundled model"
	@echo "make test   lint, types, tests"
	@echo "make lint   ruff and mypy"
	@echo "make bench  compare with transformers"
	@echo "make levels what must be exact, once without the native library and once at each of its levels here"
	@echo "make slow   the slow tests and those that install packages"
	@echo "make browser-tests  the page of the server in a real browser, which it installs where there is none"
	@echo "make examples  what the clients in examples/ need from npm, and their tests"
	@echo "make fuzz   COUNT bundles (1000) changed at random from SEED (1): each must work or be refused"
	@echo "make cuda   all that needs an NVIDIA GPU: accuracy, speed, tests; a few minutes"
	@echo "make native-tests  the kernels' own tests under sanitizers, for this machine and by emulation for others"
	@echo "make fuzz-native   the native operators under sanitizers with models that lie; SEED and CASES choose which"
	@echo "make venv   only set up .venv"
	@echo "make wheel  build the package for a device, and print its path"
	@echo "make clean  remove .venv, builds and caches"

demo: $(READY)
	$(BIN)/edgeblt demo

# Two test processes, one thread each; the tests must not reach for models over the network.
test slow levels: export OMP_NUM_THREADS ?= 1
test slow levels: export HF_HUB_OFFLINE = 1

test: lint npm
	$(BIN)/python -m pytest -n 2

# Tests that compare results with another computation, or with themselves in other company.
EXACT := $(addprefix tests/test_,exactness.py session.py portable.py bitsandbytes.py speculation.py compress.py)

levels: $(READY)
	@set -e; levels=$$($(BIN)/python -c 'from edgeblt.runtime import native; print(*native.status().levels)'); \
	for level in 0 $$levels; do \
		echo "EDGEBLT_NATIVE=$$level"; EDGEBLT_NATIVE=$$level $(BIN)/python -m pytest -n 2 -q $(EXACT); \
	done

slow: $(READY)
	$(BIN)/python -m pytest -m "slow or network"

# Also part of `make test`, where there is a chromium.
browser-tests: export OMP_NUM_THREADS ?= 1
browser-tests: $(READY)
	@for name in chromium chromium-browser google-chrome; do ! command -v $$name >/dev/null || exit 0; done; \
		$(BIN)/python -m playwright install chromium
	$(BIN)/python -m pytest -m browser

# Clients in JavaScript: the tests that need their packages are skipped where there is no npm, or no registry.
NPM := $(addprefix examples/,$(addsuffix /node_modules/.package-lock.json,browser node))

examples/%/node_modules/.package-lock.json: examples/%/package-lock.json
	npm ci --silent --prefix examples/$*

npm:
	@if ! command -v npm >/dev/null; then echo "npm is not installed; tests of examples/ that need it are skipped"; \
	else $(MAKE) --no-print-directory $(NPM) || echo "npm installed nothing; tests of examples/ are skipped"; fi

examples: export OMP_NUM_THREADS ?= 1
examples: $(READY) $(NPM)
	$(BIN)/python -m pytest -rs tests/test_example_clients.py tests/test_javascript_sampling.py

# Bundles changed at random; then, where they have a fuzzer of their own, the native operators. A case that is found is
# printed with how to run it again.
SEED ?= 1
COUNT ?= 1000

fuzz: export OMP_NUM_THREADS ?= 1
fuzz: $(READY)
	$(BIN)/python tests/fuzz_graphs.py --seed $(SEED) --count $(COUNT)
	$(if $(wildcard tests/fuzz_operators.py),$(MAKE) fuzz-native SEED=$(SEED) CASES=$(COUNT))

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers 2 $(CHECKED)

bench: $(READY)
	@$(BIN)/python benchmarks/against_transformers.py

cuda: $(READY)
	tools/check_cuda.sh --python $(BIN)/python

# AVX-512 is emulated with SIMDe's headers, NEON with qemu; what is missing for either is named, and the rest runs.
# Leaks cannot be looked for under qemu.
NATIVE_BUILD ?= build/native-tests
ROUNDS ?= 300
ARM := -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

native-tests:
	@command -v cmake >/dev/null || { echo "cmake is not installed (Debian: apt install cmake)" >&2; exit 1; }
	cmake -S native -B $(NATIVE_BUILD)/here -DEDGEBLT_TESTS=ON
	cmake --build $(NATIVE_BUILD)/here --parallel 2
	$(NATIVE_BUILD)/here/test_operator
	$(NATIVE_BUILD)/here/test_kernels $(ROUNDS)
	@if [ "$$(uname -m)" = aarch64 ]; then exit 0; fi; \
	for need in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$need >/dev/null || { \
		echo "SKIPPED: NEON, for there is no $$need (Debian: apt install g++-aarch64-linux-gnu qemu-user)"; exit 0; }; done; \
	set -ex; \
	cmake -S native -B $(NATIVE_BUILD)/aarch64 -DEDGEBLT_TESTS=ON $(ARM); \
	cmake --build $(NATIVE_BUILD)/aarch64 --parallel 2; \
	export ASAN_OPTIONS=detect_leaks=0; \
	qemu-aarch64 -L /usr/aarch64-linux-gnu $(NATIVE_BUILD)/aarch64/test_operator; \
	qemu-aarch64 -L /usr/aarch64-linux-gnu $(NATIVE_BUILD)/aarch64/test_kernels $(ROUNDS)

# The operators inside ONNX Runtime, in a library under sanitizers, with models that lie: tests/fuzz_operators.py.
CASES ?= 4000

fuzz-native: $(READY)
	@command -v cmake >/dev/null || { echo "cmake is not installed (Debian: apt install cmake)" >&2; exit 1; }
	cmake -S native -B $(NATIVE_BUILD)/sanitized -DEDGEBLT_SANITIZE=ON -DEDGEBLT_CUDA=OFF
	cmake --build $(NATIVE_BUILD)/sanitized --parallel 2
	$(BIN)/python tests/fuzz_operators.py --sanitized --library $(NATIVE_BUILD)/sanitized/libedgeblt.so \
		--seed $(SEED) --count $(CASES)

venv: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard native/* native/cuda/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "edgeblt needs Python 3.11 or newer as $(PYTHON); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --no-compile --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# Needs neither torch nor .venv: pip alone builds it, in an environment of its own.
BUILDER := build/wheel-venv
wheel:
	@test -x $(BUILDER)/bin/pip || { echo "setting up $(BUILDER)" >&2; $(PYTHON) -m venv $(BUILDER); }
	@mkdir -p dist && rm -f dist/edgeblt-*.whl
	@$(BUILDER)/bin/pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist . >&2
	@ls "$(CURDIR)"/dist/edgeblt-*.whl

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache edgeblt/libedgeblt.so edgeblt/libedgeblt_cuda.so
	find edgeblt export quant tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
