// y = x W^T + b: each output is one sum in double, ascending k.
#include "reference/reference_backend.h"

namespace fastllm::reference {

double dot(const PackedWeight& w, int64_t expert, int64_t n, const float* x) {
  return with_float_dtype(dtype_of(w.desc.format), [&]<class T>(T) {
    const T* row = reinterpret_cast<const T*>(w.data) + (expert * w.desc.n + n) * w.desc.k;
    double sum = 0.0;
    for (int64_t k = 0; k < w.desc.k; ++k) sum += static_cast<double>(x[k]) * to_float(row[k]);
    return sum;
  });
}

void ReferenceBackend::linear(const LinearArgs& args) {
  for (int64_t m = 0; m < args.x.rows; ++m) {
    for (int64_t n = 0; n < args.weight->desc.n; ++n) {
      const double bias = args.bias != nullptr ? args.bias[n] : 0.0;
      args.y.row<float>(m)[n] = static_cast<float>(dot(*args.weight, 0, n, args.x.row<float>(m)) + bias);
    }
  }
}

}  // namespace fastllm::reference
