# Every target sets up what it needs: .venv with the package (editable) and the versions in constraints.txt.
PYTHON ?= python3
EXTRAS := onnxruntime-gpu,workbench,test
BIN := .venv/bin
READY := .venv/.ready
CHECKED := edgeblt $(wildcard tests tools benchmarks)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench slow sanitize venv clean

help:
	@echo "make demo   export, validate, time and run the bundled model"
	@echo "make test   lint, types, tests"
	@echo "make lint   ruff and mypy"
	@echo "make bench  compare with transformers"
	@echo "make slow   the slow tests and those that install packages"
	@echo "make sanitize  the native kernels' own tests, under sanitizers (needs cmake)"
	@echo "make venv   only set up .venv"
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

sanitize:
	cmake -S native -B build/sanitize -DEDGEBLT_TESTS=ON
	cmake --build build/sanitize
	build/sanitize/test_kernels

venv: $(READY)

$(READY): pyproject.toml constraints.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "edgeblt needs Python 3.11 or newer as $(PYTHON); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make virtual environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "setting up .venv: a few minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache edgeblt/libedgeblt.so
	find edgeblt export quant tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
