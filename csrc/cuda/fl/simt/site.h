// Where a kernel calls: the default argument of every collective.
#pragma once

#include "cuda/fl/simt/machine.h"

namespace fl::simt {
inline Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
}  // namespace fl::simt
