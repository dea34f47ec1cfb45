#!/usr/bin/env bash
# Compiles every kernel for every architecture into build/cuda/csrc/cuda/libfastllm_cuda.so, then looks at what ptxas
# said of them (tools/cuda_gate.py). Any machine with nvcc will do; a GPU is not needed.
#   FASTLLM_CUDA_ARCHS="90a-real" tools/build_cuda.sh      one architecture, for a quick look
set -euo pipefail
cd "$(dirname "$0")/.."
command -v nvcc >/dev/null || { echo "nvcc is not in PATH; CUDA 12.8 or later is needed" >&2; exit 1; }
options=(-DFASTLLM_CUDA=ON -DFASTLLM_PYTHON=OFF "-DFASTLLM_WERROR=${FASTLLM_WERROR:-OFF}" -DCMAKE_BUILD_TYPE=Release)
[[ -z ${FASTLLM_CUDA_ARCHS:-} ]] || options+=("-DFASTLLM_CUDA_ARCHS=$FASTLLM_CUDA_ARCHS")
if command -v ccache >/dev/null; then  # it repeats the messages of ptxas, too
  options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi
mkdir -p build
cmake -S . -B build/cuda "${options[@]}" >build/cuda-configure.log 2>&1 || { cat build/cuda-configure.log; exit 1; }
cmake --build build/cuda --target clean
log=build/cuda/build.log
cmake --build build/cuda --target fastllm_cuda -j "$(nproc)" >"$log" 2>&1 || { grep -v 'ptxas info' "$log"; exit 1; }
python3 tools/cuda_gate.py "$log" --json build/cuda/registers.json
