#include "model/weight_slots.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/checked.h"
#include "core/fault.h"
#include "core/random.h"
#include "model/pack_floats.h"
#include "ops/check.h"

namespace fastllm {
namespace {

struct VectorShape {
  std::string name;
  int64_t size = 0;
};
struct Declarations {
  std::vector<MatrixShape> matrices;
  std::vector<VectorShape> vectors;
};

void declare_attention(const std::string& prefix, const LayerSpec& layer, int64_t hidden, Declarations& out) {
  const AttentionSpec& a = layer.attention;
  const int64_t q_dim = checked_mul(a.num_heads, a.head_dim);
  const int64_t kv_dim = checked_mul(a.num_kv_heads, a.head_dim);
  const int64_t qkv_dim = q_dim + 2 * kv_dim;
  out.matrices.push_back({prefix + "qkv", qkv_dim, hidden});
  out.matrices.push_back({prefix + "o", hidden, q_dim});
  if (a.has_qkv_bias) out.vectors.push_back({prefix + "qkv_bias", qkv_dim});
  if (a.has_output_bias) out.vectors.push_back({prefix + "o_bias", hidden});
  if (a.has_sinks) out.vectors.push_back({prefix + "sinks", a.num_heads});
  if (a.qk_norm != QkNorm::kNone) {
    const bool per_head = a.qk_norm == QkNorm::kPerHead;
    out.vectors.push_back({prefix + "q_norm", per_head ? a.head_dim : q_dim});
    out.vectors.push_back({prefix + "k_norm", per_head ? a.head_dim : kv_dim});
  }
}

void declare_moe(const std::string& prefix, const MoeSpec& moe, int64_t hidden, Declarations& out) {
  const int64_t x = moe.num_experts;
  out.matrices.push_back({.name = prefix + "router", .n = x, .k = hidden, .is_fixed = true});
  out.matrices.push_back({prefix + "experts.gate_up", 2 * moe.ffn_dim, hidden, x});
  out.matrices.push_back({prefix + "experts.down", hidden, moe.ffn_dim, x});
  if (moe.has_router_bias) out.vectors.push_back({prefix + "router_bias", x});
  if (moe.has_expert_bias) {
    out.vectors.push_back({prefix + "experts.gate_up_bias", checked_mul(x, 2 * moe.ffn_dim)});
    out.vectors.push_back({prefix + "experts.down_bias", checked_mul(x, hidden)});
  }
  if (moe.shared_ffn_dim > 0) {
    out.matrices.push_back({prefix + "shared.gate_up", 2 * moe.shared_ffn_dim, hidden});
    out.matrices.push_back({prefix + "shared.down", hidden, moe.shared_ffn_dim});
    out.matrices.push_back({.name = prefix + "shared_gate", .n = 1, .k = hidden, .is_fixed = true});
  }
}

Declarations declare(const ModelSpec& spec) {
  Declarations out;
  const int64_t hidden = spec.hidden_size;
  out.matrices.push_back({"embed", spec.vocab_size, hidden});
  if (!spec.tied_embeddings) out.matrices.push_back({"lm_head", spec.vocab_size, hidden});
  out.vectors.push_back({"final_norm", hidden});
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const std::string prefix = "layers." + std::to_string(i) + ".";
    declare_attention(prefix, layer, hidden, out);
    if (layer.attention_norm) out.vectors.push_back({prefix + "attention_norm", hidden});
    if (layer.attention_post_norm) out.vectors.push_back({prefix + "attention_post_norm", hidden});
    if (layer.ffn_norm) out.vectors.push_back({prefix + "ffn_norm", hidden});
    if (layer.ffn_post_norm) out.vectors.push_back({prefix + "ffn_post_norm", hidden});
    if (layer.moe) {
      declare_moe(prefix, *layer.moe, hidden, out);
    } else {
      out.matrices.push_back({prefix + "gate_up", 2 * layer.ffn->ffn_dim, hidden});
      out.matrices.push_back({prefix + "down", hidden, layer.ffn->ffn_dim});
    }
  }
  return out;
}

int64_t place(const Declarations& declarations, const WeightPlan& plan, const Backend& backend, Arena& arena,
              std::map<std::string, MatrixSlot>* matrices, std::map<std::string, VectorSlot>* vectors) {
  for (const MatrixShape& m : declarations.matrices) {
    const WeightDesc desc = desc_of(plan, m);
    const int64_t bytes = backend.packed_bytes(desc);
    auto* data = arena.take<std::byte>(bytes);
    if (matrices != nullptr) {
      matrices->emplace(
          m.name, MatrixSlot{{desc, data}, bytes, std::vector<int64_t>(static_cast<std::size_t>(m.num_experts), 0)});
    }
  }
  for (const VectorShape& v : declarations.vectors) {
    auto* data = arena.take<float>(v.size);
    if (vectors != nullptr) vectors->emplace(v.name, VectorSlot{v.size, data, 0});
  }
  return arena.used();
}

// What check() lets pass, for operations have a meaning for it: no scale of a checkpoint is infinite or NaN.
void check_scales(const std::string& name, const WeightDesc& desc, const CodeSlice& slice) {
  for (int64_t i = 0; i < slice.num_rows * desc.groups(); ++i) {
    if (std::isfinite(slice.scales[i])) continue;
    fail(ErrorKind::kCheckpoint, name, ": the scale of row ", slice.row_begin + i / desc.groups(), ", group ",
         i % desc.groups(), " is ", slice.scales[i], ", expected a finite number");
  }
}

}  // namespace

std::vector<MatrixShape> matrix_shapes(const ModelSpec& spec) { return declare(spec).matrices; }

ModelWeights::ModelWeights(const ModelSpec& spec, const WeightPlan& plan, Backend& backend) : backend_(backend) {
  const Declarations declarations = declare(spec);
  check(plan, declarations.matrices);
  Arena counting;
  storage_ = backend.allocate(place(declarations, plan, backend, counting, nullptr, nullptr), "model weights",
                              Contents::kZero);
  Arena arena({storage_.data(), static_cast<std::size_t>(storage_.size())});
  place(declarations, plan, backend, arena, &matrices_, &vectors_);
}

int64_t ModelWeights::bytes(const ModelSpec& spec, const WeightPlan& plan, const Backend& backend) {
  const Declarations declarations = declare(spec);
  check(plan, declarations.matrices);
  Arena counting;
  return place(declarations, plan, backend, counting, nullptr, nullptr);
}

MatrixSlot& ModelWeights::claim_rows(const std::string& name, int64_t row_begin, int64_t num_rows, int64_t num_cols,
                                     int64_t expert) {
  const auto it = matrices_.find(name);
  if (it == matrices_.end()) fail(ErrorKind::kCheckpoint, name, ": the model has no such matrix");
  MatrixSlot& slot = it->second;
  const WeightDesc& desc = slot.weight.desc;
  if (num_cols != desc.k) fail(ErrorKind::kCheckpoint, name, ": has ", num_cols, " columns, expected ", desc.k);
  if (expert < 0 || expert >= desc.num_experts) {
    fail(ErrorKind::kCheckpoint, name, ": expert ", expert, " of ", desc.num_experts);
  }
  if (row_begin < 0 || num_rows < 0 || row_begin > desc.n - num_rows) {
    fail(ErrorKind::kCheckpoint, name, ": rows [", row_begin, ", ", row_begin + num_rows, ") are outside [0, ", desc.n,
         ")");
  }
  {
    const std::scoped_lock lock(mutex_);
    int64_t& filled = slot.rows_filled[static_cast<std::size_t>(expert)];
    if (filled + num_rows > desc.n) fail(ErrorKind::kCheckpoint, name, ": filled more than once");
    filled += num_rows;
  }
  FASTLLM_FAULT_POINT(kIo, kCheckpoint, name.c_str());
  return slot;
}

void ModelWeights::fill_matrix(const std::string& name, const WeightSlice& slice, int64_t num_cols) {
  const MatrixSlot& slot = claim_rows(name, slice.row_begin, slice.num_rows, num_cols, slice.expert);
  pack_floats(slot.weight, slice, backend_);
}

void ModelWeights::fill_codes(const std::string& name, const CodeSlice& slice, int64_t num_cols) {
  const MatrixSlot& slot = claim_rows(name, slice.row_begin, slice.num_rows, num_cols, slice.expert);
  const WeightDesc& desc = slot.weight.desc;
  if (!has_codes(desc.format)) fail(ErrorKind::kInternal, name, ": is ", name_of(desc.format), ", codes were given");
  try {
    check(desc, slice);
  } catch (const Error& e) {
    fail(ErrorKind::kCheckpoint, name, ": ", e.what());
  }
  check_scales(name, desc, slice);
  backend_.pack_codes(slot.weight, slice);
}

void ModelWeights::fill_vector(const std::string& name, const WeightSlice& slice, int64_t offset, int64_t count) {
  const auto it = vectors_.find(name);
  if (it == vectors_.end()) fail(ErrorKind::kCheckpoint, name, ": the model has no such vector");
  VectorSlot& slot = it->second;
  if (offset < 0 || count < 0 || offset > slot.size - count) {
    fail(ErrorKind::kCheckpoint, name, ": elements [", offset, ", ", offset + count, ") are outside [0, ", slot.size,
         ")");
  }
  {
    const std::scoped_lock lock(mutex_);
    if (slot.filled + count > slot.size) fail(ErrorKind::kCheckpoint, name, ": filled more than once");
    slot.filled += count;
  }
  FASTLLM_FAULT_POINT(kIo, kCheckpoint, name.c_str());
  std::vector<float> values(static_cast<std::size_t>(count));
  with_float_dtype(slice.dtype, [&]<class T>(T) {
    const T* from = static_cast<const T*>(slice.data);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = to_float(from[static_cast<int64_t>(i) * slice.col_stride]);
  });
  backend_.upload(slot.data + offset, values.data(), count * size_of(DType::kF32));
}

void ModelWeights::fill_random(uint64_t seed) {
  constexpr int64_t kRowsAtOnce = 64;
  uint64_t stream = 0;
  for (auto& [name, slot] : matrices_) {
    const WeightDesc& desc = slot.weight.desc;
    // Unit-variance rows in, unit-variance rows out: uniform on +-sqrt(3 / K) has variance 1 / K.
    const float bound = std::sqrt(3.0f / static_cast<float>(desc.k));
    std::vector<float> block(static_cast<std::size_t>(kRowsAtOnce * desc.k));
    ++stream;
    uint64_t state = philox(seed, {static_cast<uint32_t>(stream), 0, 0, 0})[0];
    for (int64_t expert = 0; expert < desc.num_experts; ++expert) {
      for (int64_t row = 0; row < desc.n; row += kRowsAtOnce) {
        const int64_t rows = std::min(kRowsAtOnce, desc.n - row);
        for (float& w : block) {  // a linear congruential stream: speed matters here, randomness hardly
          state = state * 6364136223846793005u + 1442695040888963407u;
          w = (static_cast<float>(state >> 40) * 0x1p-23f - 1.0f) * bound;
        }
        pack_floats(slot.weight, {block.data(), DType::kF32, desc.k, 1, row, rows, expert}, backend_);
      }
      slot.rows_filled[static_cast<std::size_t>(expert)] = desc.n;
    }
  }
  for (auto& [name, slot] : vectors_) {
    const bool is_norm = name.ends_with("norm");
    const std::vector<float> values(static_cast<std::size_t>(slot.size), is_norm ? 1.0f : 0.0f);
    backend_.upload(slot.data, values.data(), slot.size * size_of(DType::kF32));
    slot.filled = slot.size;
  }
}

std::span<std::byte> ModelWeights::memory() const {
  return {storage_.data(), static_cast<std::size_t>(storage_.size())};
}

void ModelWeights::mark_filled() {
  for (auto& [name, slot] : matrices_) std::ranges::fill(slot.rows_filled, slot.weight.desc.n);
  for (auto& [name, slot] : vectors_) slot.filled = slot.size;
}

std::vector<std::string> ModelWeights::unfilled() const {
  std::vector<std::string> names;
  for (const auto& [name, slot] : matrices_) {
    for (std::size_t expert = 0; expert < slot.rows_filled.size(); ++expert) {
      const int64_t filled = slot.rows_filled[expert];
      if (filled == slot.weight.desc.n) continue;
      std::string text = name;
      if (slot.rows_filled.size() > 1) text += " of expert " + std::to_string(expert);
      names.push_back(text + " (" + std::to_string(filled) + " of " + std::to_string(slot.weight.desc.n) + " rows)");
      break;
    }
  }
  for (const auto& [name, slot] : vectors_) {
    if (slot.filled != slot.size) {
      names.push_back(name + " (" + std::to_string(slot.filled) + " of " + std::to_string(slot.size) + " elements)");
    }
  }
  return names;
}

const PackedWeight& ModelWeights::matrix(const std::string& name) const {
  const PackedWeight* weight = find_matrix(name);
  FASTLLM_CHECK(weight != nullptr, name);
  return *weight;
}

const PackedWeight* ModelWeights::find_matrix(const std::string& name) const {
  const auto it = matrices_.find(name);
  return it == matrices_.end() ? nullptr : &it->second.weight;
}

const float* ModelWeights::find_vector(const std::string& name) const {
  const auto it = vectors_.find(name);
  return it == vectors_.end() ? nullptr : it->second.data;
}

}  // namespace fastllm
