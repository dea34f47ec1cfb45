// The named weights of a model and where they live. Checkpoint readers fill slots by name; the decoder reads them.
//
// Matrix slots (packed by the backend), N x K, experts stored together:
//   embed [V, E]   lm_head [V, E] (absent when tied)
//   layers.{i}.qkv [(H + 2G) * D, E]   rows: q heads, k heads, v heads        layers.{i}.o [E, H * D]
//   layers.{i}.gate_up [2F, E]   rows: gate, then up                           layers.{i}.down [E, F]
//   layers.{i}.router [X, E] (kept in f32)   layers.{i}.experts.gate_up X x [2F, E]   layers.{i}.experts.down X x [E,
//   F] layers.{i}.shared.gate_up [2Fs, E]   layers.{i}.shared.down [E, Fs]   layers.{i}.shared_gate [1, E] (f32)
// Vector slots (float32): final_norm [E]; layers.{i}.attention_norm / attention_post_norm / ffn_norm / ffn_post_norm
// [E];
//   layers.{i}.q_norm, k_norm [D] or [H * D], [G * D]; layers.{i}.qkv_bias [(H + 2G) * D]; layers.{i}.o_bias [E];
//   layers.{i}.sinks [H]; layers.{i}.router_bias [X]; layers.{i}.experts.gate_up_bias [X, 2F];
//   layers.{i}.experts.down_bias [X, E]
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "model/spec.h"
#include "model/weight_plan.h"
#include "ops/ops.h"

namespace fastllm {

struct MatrixSlot {
  PackedWeight weight;
  int64_t bytes = 0;
  std::vector<int64_t> rows_filled;  // per expert
};

struct VectorSlot {
  int64_t size = 0;
  float* data = nullptr;
  int64_t filled = 0;
};

// The matrix slots of a model, in the order in which they lie in memory.
std::vector<MatrixShape> matrix_shapes(const ModelSpec& spec);

// Thread contract: slots are fixed at construction; fill_* may run concurrently (on disjoint rows); const afterwards.
class ModelWeights {
 public:
  // Computes sizes; allocates once. Throws kInvalidRequest if the plan does not fit the model.
  ModelWeights(const ModelSpec& spec, const WeightPlan& plan, Backend& backend);

  static int64_t bytes(const ModelSpec& spec, const WeightPlan& plan, const Backend& backend);

  // Throw kCheckpoint when the slot does not exist, rows are out of range, or columns disagree.
  // Floats for an integer matrix are rounded (model/pack_floats.h).
  void fill_matrix(const std::string& name, const WeightSlice& slice, int64_t num_cols);
  void fill_codes(const std::string& name, const CodeSlice& slice, int64_t num_cols);  // of an integer matrix
  void fill_vector(const std::string& name, const WeightSlice& slice, int64_t offset, int64_t count);
  void fill_random(uint64_t seed);  // dummy weights: scaled so that activations stay of order one
  // Everything at once, by whoever writes memory() whole.
  [[nodiscard]] std::span<std::byte> memory() const;
  void mark_filled();
  // Names of slots that are not completely filled.
  [[nodiscard]] std::vector<std::string> unfilled() const;

  [[nodiscard]] const PackedWeight& matrix(const std::string& name) const;
  [[nodiscard]] const PackedWeight* find_matrix(const std::string& name) const;  // nullptr when the model has none
  [[nodiscard]] const float* find_vector(const std::string& name) const;
  [[nodiscard]] const std::map<std::string, MatrixSlot>& matrices() const { return matrices_; }
  [[nodiscard]] const std::map<std::string, VectorSlot>& vectors() const { return vectors_; }

 private:
  // The slot, after checks, with the rows counted as filled.
  MatrixSlot& claim_rows(const std::string& name, int64_t row_begin, int64_t num_rows, int64_t num_cols,
                         int64_t expert);

  Backend& backend_;
  std::mutex mutex_;  // guards rows_filled and filled
  std::map<std::string, MatrixSlot> matrices_;
  std::map<std::string, VectorSlot> vectors_;
  DeviceMemory storage_;
};

}  // namespace fastllm
