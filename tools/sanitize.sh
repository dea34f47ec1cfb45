#!/usr/bin/env bash
# Builds the native tests with sanitizers and runs them: address + undefined behaviour, then threads.
# Any report fails. Builds go to build/asan and build/tsan.
set -euo pipefail
cd "$(dirname "$0")/.."

run() {
  local name=$1 sanitizers=$2
  echo "== $name: $sanitizers"
  cmake -S . -B "build/$name" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFASTLLM_SANITIZE="$sanitizers" \
    -DFASTLLM_NATIVE_TESTS=ON -DFASTLLM_PYTHON=OFF -DFASTLLM_FAULTS=ON -DFASTLLM_WERROR=ON > /dev/null
  cmake --build "build/$name" -j "$(nproc)"
  ctest --test-dir "build/$name" --output-on-failure
}

export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
run asan address,undefined,float-cast-overflow
run tsan thread
