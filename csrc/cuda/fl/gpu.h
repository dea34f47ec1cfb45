// What a kernel file includes, and all it includes of the device. Under nvcc: thin wrappers of PTX (fl/ptx/). With
// -DFL_SIMT, compiled by g++ or clang++ and with no CUDA at hand: the same functions in C++ (fl/simt/), on a machine
// whose threads are fibers. csrc/cuda/README.md has the rules that make a kernel run in both.
//
// The functions are described once, in fl/ptx/; tests/cuda/conformance.cpp compares the two halves.
#pragma once

#include "cuda/fl/types.h"

#if defined(FL_SIMT)
#include "cuda/fl/simt/simt.h"
#else
#include "cuda/fl/ptx/barriers.h"
#include "cuda/fl/ptx/copies.h"
#include "cuda/fl/ptx/matrix.h"
#include "cuda/fl/ptx/matrix_fp8.h"
#include "cuda/fl/ptx/memory.h"
#include "cuda/fl/ptx/numbers.h"
#include "cuda/fl/ptx/warp.h"
#endif

#include "cuda/fl/launch.h"
