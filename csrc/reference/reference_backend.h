// The contract of operations in plain loops: what each operation means. Slow, single-threaded, the oracle of the
// others.
#pragma once

#include <memory>

#include "ops/host_backend.h"

namespace fastllm {

std::unique_ptr<Backend> make_reference_backend();

namespace reference {

// Layouts. A packed weight is [expert][n][k], row-major, in its own format (integers: int_linear.cpp). A KV page is
// [k or v][kv head][token in page][dimension]; int8: then the scales, [kv head][token][group] of K, [kv head][token] of
// V.
constexpr int64_t kPageSize = 16;

class ReferenceBackend final : public HostBackend {
 public:
  [[nodiscard]] const char* name() const override { return "reference"; }
  [[nodiscard]] int num_threads() const override { return 1; }

  [[nodiscard]] int64_t packed_bytes(const WeightDesc& desc) const override;
  void pack(const PackedWeight& to, const WeightSlice& slice) override;
  void pack_codes(const PackedWeight& to, const CodeSlice& slice) override;
  [[nodiscard]] int64_t page_size() const override { return kPageSize; }
  [[nodiscard]] int64_t kv_page_bytes(const KvSpec& spec) const override;
  [[nodiscard]] int64_t scratch_bytes(const OpLimits& limits) const override;
  void reserve(const OpLimits& limits) override;

  void embed(const EmbedArgs& args) override;
  void rms_norm(const RmsNormArgs& args) override;
  void linear(const LinearArgs& args) override;
  void rope_table(const RopeTableArgs& args) override;
  void rope_and_store(const RopeAndStoreArgs& args) override;
  void paged_attention(const PagedAttentionArgs& args) override;
  void gated_activation(const GatedActivationArgs& args) override;
  void moe_route(const MoeRouteArgs& args) override;
  void moe_ffn(const MoeFfnArgs& args) override;
  void add(const AddArgs& args) override;
  void softcap(const SoftcapArgs& args) override;
  void sample(const SampleArgs& args) override;
  void copy_pages(const CopyPagesArgs& args) override;
};

DType dtype_of(WeightFormat format);

// Integer weights: where the parts of one expert lie.
struct IntMatrix {
  float* scales;
  uint8_t* codes;
  uint8_t* zeros;
};
int64_t int_matrix_bytes(const WeightDesc& desc);
IntMatrix int_matrix(const PackedWeight& w, int64_t expert);
int64_t scale_index(const WeightDesc& desc, int64_t n, int64_t k);
int32_t centred_code(const IntMatrix& m, const WeightDesc& desc, int64_t n, int64_t k);  // code - zero
float code_value(const IntMatrix& m, const WeightDesc& desc, int64_t n, int64_t k);      // that, or what an fp8 code is
void code_products(const PackedWeight& w, int64_t expert, const float* x, double* y);    // as ActMode defines them

// Element (n, k) of one expert, widened to float.
float weight_at(const PackedWeight& weight, int64_t expert, int64_t n, int64_t k);
float gated(const ActivationSpec& spec, float gate, float up);
double sigmoid(double x);
// y[0..N) = matrix of one expert times x. Float weights: one sum in double over ascending k for each output.
void products(const PackedWeight& w, int64_t expert, const float* x, double* y);

}  // namespace reference
}  // namespace fastllm
