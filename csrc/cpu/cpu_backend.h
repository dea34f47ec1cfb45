// The operations on the processor: a thread pool, the kernels of one ISA level, and scratch memory taken once.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/cpu_info.h"
#include "core/thread_pool.h"
#include "cpu/kernels.h"
#include "ops/host_backend.h"
#include "ops/sampling_algorithm.h"

namespace fastllm {

// Throws kDevice if this build has no kernels for the level. The caller has checked that the machine has it.
std::unique_ptr<Backend> make_cpu_backend(int num_threads, CpuIsa isa);

namespace cpu {

struct Matrix;

// Rows that are multiplied together, with the packed activations of one expert (dense: of the only one).
struct RowGroup {
  int64_t expert = 0;
  int64_t begin = 0;
  int64_t num_rows = 0;
};

// Everything that an operation needs beside its arguments; cpu_backend.cpp has the sizes.
struct Scratch {
  struct PerThread {
    float* q = nullptr;
    std::byte* packed_q = nullptr;
    float* scores = nullptr;
    int16_t* weights = nullptr;
    AttentionState sum;
    AttentionState tile;
    int32_t* begin = nullptr;
    int32_t* end = nullptr;
    float* gate = nullptr;  // [kGroupRows, kFfnStride]
    float* up = nullptr;
    SampleScratch sampling;
  };

  std::byte* packed = nullptr;  // activations as the kernels read them
  int64_t packed_rows = 0;
  int64_t packed_row_bytes = 0;
  std::byte* packed_ffn = nullptr;  // those between the two products of a feed-forward layer
  int64_t packed_ffn_row_bytes = 0;

  int64_t moe_pairs = 0;            // (token, expert) pairs of one pass
  int64_t* expert_start = nullptr;  // [X + 1]
  int32_t* pair_token = nullptr;    // [moe_pairs] by ascending expert, then token
  float* pair_weight = nullptr;
  RowGroup* groups = nullptr;
  int64_t max_groups = 0;

  int32_t* seq_order = nullptr;   // [S] attention: sequences, those that share a prefix side by side
  int32_t* run_start = nullptr;   // [S + 1] where each run of them begins
  int64_t* item_start = nullptr;  // [S + 1] items before each run
  int64_t max_seqs = 0;
  std::vector<PerThread> threads;

  static Scratch take(Arena& arena, const OpLimits& limits, int num_threads);
};

class CpuBackend final : public HostBackend {
 public:
  CpuBackend(int num_threads, CpuIsa isa);

  [[nodiscard]] const char* name() const override { return name_.c_str(); }
  [[nodiscard]] int num_threads() const override { return pool_.size(); }

  [[nodiscard]] int64_t packed_bytes(const WeightDesc& desc) const override;
  void pack(const PackedWeight& to, const WeightSlice& slice) override;
  void pack_codes(const PackedWeight& to, const CodeSlice& slice) override;
  [[nodiscard]] int64_t page_size() const override { return kPageTokens; }
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
  [[nodiscard]] bool fuses_ffn() const override { return true; }
  void dense_ffn(const DenseFfnArgs& args) override;
  void moe_route(const MoeRouteArgs& args) override;
  void moe_ffn(const MoeFfnArgs& args) override;
  void add(const AddArgs& args) override;
  void softcap(const SoftcapArgs& args) override;
  void sample(const SampleArgs& args) override;
  void copy_pages(const CopyPagesArgs& args) override;

 private:
  // Rows of x, or rows row_ids[i] of x, as the kernels of the matrix read them.
  struct PackRows {
    const float* x;
    int64_t x_stride;
    const int32_t* row_ids;
  };
  void pack_rows(const Matrix& matrix, const PackRows& rows, std::span<const RowGroup> groups);
  void check_packed(const char* op, const Matrix& matrix, int64_t reserved_row_bytes) const;
  // num_rows rows of one matrix as groups, as even as possible.
  std::span<const RowGroup> split_rows(int64_t num_rows);
  // Packed rows times a matrix that is no expert's: rows first_row on of y.
  void multiply(const Matrix& matrix, const std::byte* packed, std::span<const RowGroup> groups, const float* bias,
                const Mat& y, int64_t first_row);
  // Rows packed for gate_up, multiplied with it, activated and packed for `down`. bias: [X, 2F] or nullptr.
  void multiply_gated(const Matrix& gate_up, const float* bias, const ActivationSpec& activation, const Matrix& down,
                      std::span<const RowGroup> groups);
  void moe_pass(const MoeFfnArgs& args, int64_t token_begin, int64_t num_tokens);
  [[nodiscard]] std::span<const RowGroup> sort_by_expert(const MoeFfnArgs& args, int64_t token_begin,
                                                         int64_t num_tokens);

  std::string name_;
  const KernelTable& kernels_;
  ThreadPool pool_;
  Buffer storage_;
  Scratch scratch_;
};

GatedKind gated_kind(Activation activation);

// Element type of a weight format.
Elem elem_of(WeightFormat format);

// Sizes of a packed matrix: panels of 32 rows, then the zeros of integer weights (kernels.h).
struct PanelLayout {
  explicit PanelLayout(const WeightDesc& desc);
  IntFormat format;  // of integer weights
  int64_t num_panels = 0;
  int64_t panel_bytes = 0;
  int64_t block_bytes = 0;   // of integer weights: a panel is (row scales and) blocks
  int64_t zeros_offset = 0;  // from the first panel of an expert
  int64_t expert_bytes = 0;
};

// Offsets and sizes within a KV page: per kv head K, then V, each followed by its scales if it is int8.
struct PageLayout {
  explicit PageLayout(const KvSpec& spec);
  KvElem elem;
  int64_t k_scales;  // from the K of the same head, as are v and v_scales
  int64_t v;
  int64_t v_scales;
  int64_t head_bytes;
  int64_t page_bytes;
};

// One row per unit; few enough numbers stay on the calling thread.
constexpr int64_t kNumbersPerTask = 1 << 13;
constexpr int64_t rows_per_task(int64_t cols) {
  return cols >= kNumbersPerTask ? 1 : kNumbersPerTask / (cols > 0 ? cols : 1);
}

}  // namespace cpu
}  // namespace fastllm
