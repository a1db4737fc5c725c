# Every target sets up what it needs: .venv with the package (editable) and the versions in constraints.txt.
PYTHON ?= python3
EXTRAS := onnxruntime-gpu,report,workbench,test
BIN := .venv/bin
READY := .venv/.ready
CHECKED := edgeblt $(wildcard tests tools benchmarks)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench slow cuda native-tests venv wheel clean

help:
	@echo "make demo   export, validate, time and run the bundled model"
	@echo "make test   lint, types, tests"
	@echo "make lint   ruff and mypy"
	@echo "make bench  compare with transformers"
	@echo "make slow   the slow tests and those that install packages"
	@echo "make cuda   all that needs an NVIDIA GPU: accuracy, speed, tests; a few minutes"
	@echo "make native-tests  the kernels' own tests under sanitizers, for this machine and by emulation for others"
	@echo "make venv   only set up .venv"
	@echo "make wheel  build the package for a device, and print its path"
	@echo "make clean  remove .venv, builds and caches"

demo: $(READY)
	$(BIN)/edgeblt demo

# Two test processes, one thread each; the tests must not reach for models over the network.
test slow: export OMP_NUM_THREADS ?= 1
test slow: export HF_HUB_OFFLINE = 1

test: lint
	$(BIN)/python -m pytest -n 2

slow: $(READY)
	$(BIN)/python -m pytest -m "slow or network"

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(CHECKED)

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
	$(NATIVE_BUILD)/here/test_kernels $(ROUNDS)
	@if [ "$$(uname -m)" = aarch64 ]; then exit 0; fi; \
	for need in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$need >/dev/null || { \
		echo "SKIPPED: NEON, for there is no $$need (Debian: apt install g++-aarch64-linux-gnu qemu-user)"; exit 0; }; done; \
	set -ex; \
	cmake -S native -B $(NATIVE_BUILD)/aarch64 -DEDGEBLT_TESTS=ON $(ARM); \
	cmake --build $(NATIVE_BUILD)/aarch64 --parallel 2; \
	ASAN_OPTIONS=detect_leaks=0 qemu-aarch64 -L /usr/aarch64-linux-gnu $(NATIVE_BUILD)/aarch64/test_kernels $(ROUNDS)

venv: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard native/* native/cuda/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "edgeblt needs Python 3.11 or newer as $(PYTHON); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --quiet -c constraints.txt -e '.[$(EXTRAS)]'
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
