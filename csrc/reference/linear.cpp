// y = x W^T + b. Float weights: each output is one sum in double, ascending k. Codes: int_linear.cpp.
#include <vector>

#include "reference/reference_backend.h"

namespace fastllm::reference {

void products(const PackedWeight& w, int64_t expert, const float* x, double* y) {
  if (has_codes(w.desc.format)) return code_products(w, expert, x, y);
  with_float_dtype(dtype_of(w.desc.format), [&]<class T>(T) {
    const T* row = reinterpret_cast<const T*>(w.data) + expert * w.desc.n * w.desc.k;
    for (int64_t n = 0; n < w.desc.n; ++n, row += w.desc.k) {
      y[n] = 0.0;
      for (int64_t k = 0; k < w.desc.k; ++k) y[n] += static_cast<double>(x[k]) * to_float(row[k]);
    }
  });
}

void ReferenceBackend::linear(const LinearArgs& args) {
  std::vector<double> row(static_cast<std::size_t>(args.weight->desc.n));
  for (int64_t m = 0; m < args.x.rows; ++m) {
    products(*args.weight, 0, args.x.row<float>(m), row.data());
    for (int64_t n = 0; n < args.weight->desc.n; ++n) {
      const double sum = row[static_cast<std::size_t>(n)];
      args.y.row<float>(m)[n] = static_cast<float>(args.bias != nullptr ? sum + args.bias[n] : sum);
    }
  }
}

}  // namespace fastllm::reference
