# make demo      a first text from the model in the package (no network after the install)
# make test      everything the tests need, then all of them, in two processes (JOBS=4 for more)
# make lint      ruff, mypy, clang-format
# make stubs     type stubs of the native module, after a change of its bindings
# make sanitize  native tests under address + undefined, then thread sanitizers; Python smoke suite under the first
# make fuzz      each parser for a minute (SECONDS=600 for longer), with atheris if it is installed
# make cuda      libfastllm_cuda.so for three architectures, and its gate on spills, stack frames and registers
# make soak      the server's tests at full size (100,000 random bodies, 1,000 clients that vanish), and ten minutes of mixed clients
# make bench     speed of this machine and share of its limits; each kernel alone

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc python -type f -not -name '*.pyc') CMakeLists.txt pyproject.toml

.PHONY: cuda demo test lint stubs sanitize fuzz bench soak clean

demo: $(VENV)/.installed
	$(BIN)/fastllm generate "The os module provides" --max-tokens 64 --temperature 0.8 --seed 0 --stream

JOBS ?= 2
test: $(VENV)/.test
	$(BIN)/python -m pytest tests -n $(JOBS) --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc tests benches -name '*.h' -o -name '*.cpp' -o -name '*.cu' | xargs $(BIN)/clang-format --dry-run --Werror

# After a change of csrc/bindings: the type stubs of the extension that is installed in the environment.
stubs: $(VENV)/.test
	$(BIN)/python -m pip install -q nanobind
	$(BIN)/python -m nanobind.stubgen -q -m fastllm._core -o python/fastllm/_core.pyi

# The table of kernels needs Google Benchmark (Debian: libbenchmark-dev); without it CMake says so and the rest stands.
bench: $(VENV)/.installed
	$(BIN)/fastllm bench
	-cmake -S . -B build/bench -DFASTLLM_BENCH=ON -DFASTLLM_PYTHON=OFF && cmake --build build/bench -j --target fastllm_bench \
	  && build/bench/benches/native/fastllm_bench

cuda:
	PATH="$(abspath $(BIN)):$$PATH" tools/build_cuda.sh

soak: $(VENV)/.test
	FASTLLM_SOAK_SECONDS=600 $(BIN)/python -m pytest tests/server -s

sanitize: $(VENV)/.test
	tools/sanitize.sh

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q .
	touch $@

$(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q '.[test]'
	touch $@

# mypy reads the types of what the package imports: the tests' environment has all of it.
$(VENV)/.dev: $(VENV)/.test
	$(BIN)/python -m pip install -q --group dev
	touch $@

SECONDS ?= 60
fuzz: $(VENV)/.test
	for target in safetensors config tokenizer index gguf quantized; do \
	  $(BIN)/python tests/fuzz/fuzz.py $$target --seconds $(SECONDS) || exit 1; done

clean:
	rm -rf $(VENV) build dist
