#!/usr/bin/env bash
# What to run first on a machine with a GPU: builds for its architecture, then asks of the hardware what the emulator
# could only promise. One table on the terminal; the same with the machine's description in build/gpu/report.json, and
# the output of every step in build/gpu/logs/. Needs nvcc, cmake and the test environment's Python (PYTHON=...).
#   tools/gpu_check.sh            all steps, whatever fails on the way
#   tools/gpu_check.sh conformance operations      only these (the build comes first in any case)
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
build=build/gpu
logs=$build/logs
mkdir -p "$logs"
results=$logs/results.tsv
: >"$results"
only=("$@")
failed=0

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
    cmake --build "$build" -j "$(nproc)" --target _core fastllm_cuda cuda_conformance cuda_conformance_emulated &&
    cp "$build"/csrc/_core*.so "$build"/csrc/cuda/libfastllm_cuda.so python/fastllm/
}
conformance() {
  "$build/tests/cuda/cuda_conformance_emulated" --write "$build/expected.bin" &&
    "$build/tests/cuda/cuda_conformance" --compare "$build/expected.bin"
}
operations() { PYTHONPATH=python "$PYTHON" -m pytest tests/ops -q -k 'cuda and not emulated'; }
models() { PYTHONPATH=python "$PYTHON" -m pytest tests/models/test_cuda.py -q -k 'not emulated'; }
sanitizer() {
  local tool
  for tool in memcheck racecheck synccheck initcheck; do
    echo "--- $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 \
      "$build/tests/cuda/cuda_conformance" --compare "$build/expected.bin" || return 1
    PYTHONPATH=python PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
      --target-processes all "$PYTHON" -m pytest tests/ops -q -x -k 'cuda and not emulated and (norm or activation or copied or ties)' ||
      return 1
  done
}
benches() {
  local bench
  for bench in "$build"/benches/cuda/bench_*; do
    [[ -x $bench ]] || { echo "no benchmark was built"; return 0; }
    echo "--- ${bench##*/}"
    "$bench" --json "$build/${bench##*/}.json" || return 1
  done
}

if step build build; then
  step conformance conformance
  step operations operations
  step models models
  if command -v compute-sanitizer >/dev/null; then step sanitizer sanitizer; fi
  step benches benches
fi

"$PYTHON" - "$build" <<'PYTHON_CODE'
import json, pathlib, subprocess, sys

build = pathlib.Path(sys.argv[1])
def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
rows = [line.split("\t") for line in (build / "logs" / "results.tsv").read_text().splitlines()]
report = {
    "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40"),
    "date": output("date", "-u", "+%Y-%m-%dT%H:%M:%SZ"),
    "gpu": output("nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"),
    "nvcc": output("nvcc", "--version").splitlines()[-1:],
    "steps": [{"name": name, "status": status, "seconds": float(seconds)} for name, status, seconds in rows],
    "benches": {p.stem: json.loads(p.read_text()) for p in sorted(build.glob("bench_*.json"))},
}
(build / "report.json").write_text(json.dumps(report, indent=1))
print(f"{build / 'report.json'}: {report['gpu']}, commit {report['commit']}")
PYTHON_CODE
exit "$failed"
