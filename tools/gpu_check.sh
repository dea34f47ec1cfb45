#!/usr/bin/env bash
# What to run first on a machine with a GPU: builds for its architecture, then asks of the hardware what the emulator
# could only promise, then times it. A table on the terminal; for docs/performance.md the same with the machine's
# description in build/gpu/report.md and report.json; the output of every step in build/gpu/logs/. Needs nvcc, cmake and
# the test environment's Python (PYTHON=...). Ends within 10 minutes (LIMIT_S=600): what is not done by then fails.
#   tools/gpu_check.sh            all steps, whatever fails on the way
#   tools/gpu_check.sh conformance operations      only these (the build comes first in any case)
# shellcheck disable=SC2329  # step calls the functions by their names
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}
build=build/gpu
logs=$build/logs
mkdir -p "$logs"
results=$logs/results.tsv
: >"$results"
only=("$@")
failed=0
deadline=$(($(date +%s) + ${LIMIT_S:-600}))

# limited COMMAND...: no longer than there is time.
limited() {
  local left=$((deadline - $(date +%s)))
  ((left > 0)) || { echo "no time left for: $*"; return 1; }
  timeout --kill-after=5 "$left" "$@"
}

wanted() {
  [[ ${#only[@]} -eq 0 || $1 == build ]] && return 0
  local name
  for name in "${only[@]}"; do [[ $name == "$1" ]] && return 0; done
  return 1
}

# step NAME COMMAND...: runs it, notes how it ended and how long it took.
step() {
  local name=$1
  shift
  wanted "$name" || return 0
  local begin status=ok
  begin=$(date +%s.%N)
  "$@" >"$logs/$name.log" 2>&1 || status=FAIL
  local seconds
  seconds=$(awk -v b="$begin" -v e="$(date +%s.%N)" 'BEGIN { printf "%.1f", e - b }')
  printf '%s\t%s\t%s\n' "$name" "$status" "$seconds" >>"$results"
  printf '%-14s %-5s %8s s   %s\n' "$name" "$status" "$seconds" "$(tail -n 1 "$logs/$name.log")"
  [[ $status == ok ]] || failed=1
  [[ $status == ok ]]
}

arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .) || exit 1
[[ -n $arch ]] || { echo "nvidia-smi shows no device" >&2; exit 1; }
[[ $arch == 90 ]] && arch=90a

build() {
  local launchers=()
  if command -v ccache >/dev/null; then
    launchers=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
  fi
  cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DFASTLLM_CUDA=ON -DFASTLLM_CUDA_ARCHS="$arch-real" \
    -DFASTLLM_NATIVE_TESTS=ON -DSKBUILD_SABI_COMPONENT= "-DPython_EXECUTABLE=$(command -v "$PYTHON")" "${launchers[@]}" &&
    limited cmake --build "$build" -j "$(nproc)" --target _core fastllm_cuda cuda_conformance cuda_conformance_emulated \
      bench_ceilings bench_paged_attention bench_int4_gemm bench_moe bench_step &&
    cp "$build"/csrc/_core*.so "$build"/csrc/cuda/libfastllm_cuda.so python/fastllm/
}
conformance() {
  limited "$build/tests/cuda/cuda_conformance_emulated" --write "$build/expected.bin" &&
    limited "$build/tests/cuda/cuda_conformance" --compare "$build/expected.bin"
}
operations() {  # tests by the device in their names: if it does not open, that is said, and none is there
  PYTHONPATH=python limited "$PYTHON" -c 'from fastllm import ops; print(ops.Device("cuda").name)' &&
    PYTHONPATH=python limited "$PYTHON" -m pytest tests/ops -q -k '([cuda and not emulated) or Gpu or work_follows'
}
models() { PYTHONPATH=python limited "$PYTHON" -m pytest tests/models/test_cuda.py -q -k 'not emulated'; }
sanitizer() {  # of every family of kernels at least one small case
  local tool
  local cases='rms_norm_of_rows or gated_activation or copied or breaks_ties or 9x1024x100-bfloat16 or empty_ones'
  cases+=' or (edges_of_slots and bfloat16-0) or 13-8-3-33-17-silu-bfloat16 or draw_depends_on_its_row'
  command -v compute-sanitizer || { echo "compute-sanitizer is not in PATH; it comes with the CUDA toolkit"; return 1; }
  for tool in memcheck racecheck synccheck initcheck; do
    echo "--- $tool"
    limited compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$build/tests/cuda/cuda_conformance" --compare "$build/expected.bin" || return 1
    PYTHONPATH=python PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited compute-sanitizer --tool "$tool" --error-exitcode 1 \
      --target-processes all "$PYTHON" -m pytest tests/ops -q -x -k "[cuda and not emulated and ($cases)" || return 1
  done
}
benches() {
  local name status=0
  limited "$build/benches/cuda/bench_ceilings" --json "$build/bench_ceilings.json" || return 1
  for name in bench_paged_attention bench_int4_gemm bench_moe bench_step; do
    limited "$build/benches/cuda/$name" --ceilings "$build/bench_ceilings.json" --json "$build/$name.json" || status=1
  done
  return "$status"
}
peers() { limited "$PYTHON" benches/cuda/compare.py --ours "$build" --json "$build/peers.json"; }

rm -f "$build"/bench_*.json "$build/peers.json"
if step build build; then
  step conformance conformance
  step operations operations
  step models models
  step benches benches
  step peers peers
  step sanitizer sanitizer  # last: the slowest
fi

"$PYTHON" tools/gpu_report.py "$build"
exit "$failed"
