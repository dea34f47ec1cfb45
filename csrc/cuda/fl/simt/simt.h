// The functions of fl/ptx/ in C++, for kernels compiled with -DFL_SIMT. Same names, same meaning.
#pragma once

#include <cmath>

#include "cuda/fl/mma_by_halves.h"
#include "cuda/fl/simt/barriers.h"
#include "cuda/fl/simt/copies.h"
#include "cuda/fl/simt/matrix.h"
#include "cuda/fl/simt/memory.h"
#include "cuda/fl/simt/numbers.h"
#include "cuda/fl/simt/warp.h"

#define threadIdx (::fl::simt::current->thread_idx)
#define blockIdx (::fl::simt::block_idx())
#define blockDim (::fl::simt::block_dim())
#define gridDim (::fl::simt::grid_dim())
