#!/usr/bin/env bash
# Builds the native tests with sanitizers and runs them: address + undefined behaviour, then threads. Then the Python
# extension with address + undefined behaviour and a smoke suite of the Python tests. Any report fails.
# Needs a C++ compiler; cmake and ninja come from PyPI where they are missing. Builds go to build/asan and build/tsan.
#
#   tools/sanitize.sh [asan] [tsan] [python]       all three without an argument
set -euo pipefail
shopt -s extglob
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
PYTHON=${PYTHON:-python3}

if ! command -v cmake > /dev/null || ! command -v ninja > /dev/null; then
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install -q cmake ninja
fi

# detect_stack_use_after_return=0: gcc up to 13.2 places 64-byte vectors on it misaligned (gcc bug 110027).
# print_stacktrace: where undefined behaviour happened, not only what. Leaks are errors too (the default on Linux).
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export ASAN_OPTIONS=strict_string_checks=1:check_initialization_order=1:detect_stack_use_after_return=0
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
undefined=undefined,float-cast-overflow,float-divide-by-zero,integer-divide-by-zero,bounds,alignment

build() { # name, sanitizers, further options
  local name=$1 sanitizers=$2
  shift 2
  echo "== $name: $sanitizers"
  cmake -G Ninja -S . -B "build/$name" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1" \
    -DFASTLLM_SANITIZE="$sanitizers" -DFASTLLM_FAULTS=ON -DFASTLLM_WERROR="${FASTLLM_WERROR:-OFF}" "$@" > /dev/null
  cmake --build "build/$name" | tail -n 1
}

run_tests() { # name, arguments of the tests
  local name=$1 test
  shift
  for test in "build/$name"/tests/native/*_test "build/$name"/tests/native/engine_{simulation,threads}; do
    # Kernels in the emulator: fibers on one thread, whose switches ThreadSanitizer does not know.
    [[ $name == tsan && $test == *@(simt|cuda)_test ]] && continue
    echo "-- $(basename "$test") $*"
    "$test" "$@"
  done
}

asan() {
  build asan "address,$undefined" -DFASTLLM_NATIVE_TESTS=ON -DFASTLLM_PYTHON=OFF
  run_tests asan --schedules 4000
}

tsan() {
  build tsan thread -DFASTLLM_NATIVE_TESTS=ON -DFASTLLM_PYTHON=OFF
  run_tests tsan --schedules 1000 --stride 3
}

# The extension in a Python of its own: leaks of the interpreter are not ours, everything else is.
python() {
  local python=${FASTLLM_TEST_PYTHON:-$PWD/.venv/bin/python} site
  if [ -z "${FASTLLM_TEST_PYTHON:-}" ]; then
    [ -x "$python" ] || "$PYTHON" -m venv .venv
    "$python" -m pip install -q nanobind '.[test]'
  fi
  build asan "address,$undefined" -DFASTLLM_PYTHON=ON -DFASTLLM_NATIVE_TESTS=ON \
    -DPython_EXECUTABLE="$python" -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)"
  site=$PWD/build/asan/site
  rm -rf "$site"
  mkdir -p "$site"
  cp -r python/fastllm "$site/"
  rm -f "$site"/fastllm/_core*.so
  cp build/asan/csrc/_core*.so "$site/fastllm/"
  echo "-- Python smoke suite"
  LD_PRELOAD="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" PYTHONMALLOC=malloc PYTHONPATH="$site:tests" FASTLLM_TEST_FAULTS=1 \
    "$python" -m pytest -q -p no:cacheprovider "${smoke[@]}"
}
# Those that run the native code most. torch only writes their checkpoints: it is slow under the sanitizer.
smoke=(tests/engine/test_faults.py tests/engine/test_batch_invariance.py tests/checkpoint/test_bad_checkpoints.py
  tests/api/test_llm.py)

all=${*:-asan tsan python}
for part in $all; do "$part"; done
