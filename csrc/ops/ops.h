// The contract of operations: everything a model needs, as argument structs and one pure virtual class.
// `reference/` defines what each operation means; other backends must agree with it.
//
// Letters: T new tokens of the step, S sequences, E hidden, H query heads, G key/value heads, D head size,
// F feed-forward, V vocabulary, P page size, X experts, k experts per token, R rows that want logits.
//
// Every result row depends on its own input row (and its own sequence) alone, bit for bit: the order of each reduction
// is fixed by the shape of the problem and the position in the sequence, never by T, S or the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "core/dtype.h"
#include "ops/device_memory.h"
#include "ops/sampling.h"
#include "ops/weights.h"

namespace fastllm {

// A matrix of activations: `rows` x `cols`, contiguous within a row, rows `stride` elements apart.
// A [T, H, D] tensor is a Mat with cols = H * D.
struct Mat {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  template <class Element>
  [[nodiscard]] Element* row(int64_t i) const {
    return static_cast<Element*>(data) + i * stride;
  }
  // Columns [begin, begin + count) of the same rows.
  [[nodiscard]] Mat columns(int64_t begin, int64_t count) const {
    return {static_cast<std::byte*>(data) + begin * size_of(dtype), dtype, rows, count, stride};
  }
  [[nodiscard]] Mat top(int64_t count) const { return {data, dtype, count, cols, stride}; }
};

// One ragged step: prefill, chunked prefill, decode and verification are the same thing with other counts.
// context_len counts the new tokens too. Arrays are in memory of the backend, as every pointer in the arguments below
// but those of SampleRow and CopyPagesArgs, which the host reads.
struct StepView {
  int64_t num_tokens = 0;                // T
  int64_t num_seqs = 0;                  // S
  int64_t max_pages = 0;                 // row length of block_table
  int64_t max_context_len = 0;           // largest entry of context_len
  const int32_t* token_ids = nullptr;    // [T]
  const int32_t* positions = nullptr;    // [T] position of each token in its sequence
  const int32_t* query_start = nullptr;  // [S + 1] sequence s owns tokens [query_start[s], query_start[s+1])
  const int32_t* context_len = nullptr;  // [S]
  const int32_t* block_table = nullptr;  // [S, max_pages] page ids
  const int64_t* slots = nullptr;        // [T] page id * P + offset in the page, where the token's K/V goes
};

// K/V of one layer. The layout inside a page belongs to the backend.
//
// kI8 stores signed bytes and their scales. Of the numbers that share a scale (K: kKvScaleDims consecutive dimensions
// of one token and head; V: all of one token and head), in float32:
//   scale = bf16(largest |x| / 127),  code = x / scale rounded to nearest even, at most 127 either way,
//   x' = code * scale
// Codes are 0 where the scale is 0. The scale is NaN where a number is not finite. bf16, because it cannot overflow and
// keeps its precision for small numbers; that it is coarse costs nothing, the codes being relative to it.
//
// kE4M3 is the same with scale = bf16(largest |x| / 448) and code = x / scale rounded to the nearest e4m3, at most 448
// either way. A backend may refuse it (kUnsupportedModel from kv_page_bytes).
struct KvSpec {
  int64_t num_kv_heads = 0;    // G
  int64_t head_dim = 0;        // D
  DType dtype = DType::kBF16;  // kF32, kBF16, kF16, kI8, kE4M3
};
constexpr int64_t kKvScaleDims = 32;
constexpr bool has_kv_scales(DType t) { return t == DType::kI8 || t == DType::kE4M3; }
struct KvLayer {
  KvSpec spec;
  std::byte* data = nullptr;  // page p begins at data + p * page_bytes
  int64_t page_bytes = 0;     // Backend::kv_page_bytes(spec)
  int64_t num_pages = 0;
};

// out[t] = table[ids[t]] * scale
struct EmbedArgs {
  const int32_t* ids = nullptr;  // [T], 0 <= id < V
  int64_t num_tokens = 0;
  const PackedWeight* table = nullptr;  // V x E
  float scale = 1.0f;
  Mat out;  // [T, E]
};

// For each consecutive group of `group` columns:  y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), float32.
// With `residual`: residual += x first, and the sum is what is normalised. y may be x.
// With row_ids: row i of y comes from row row_ids[i] of x (and residual, which is then only read, x being added to it
// on the fly).
struct RmsNormArgs {
  Mat x;                          // [T, E]
  Mat residual;                   // [T, E] in/out, or data == nullptr
  const float* weight = nullptr;  // [group]
  float weight_offset = 0.0f;     // 1 for Gemma
  float eps = 1e-6f;
  int64_t group = 0;                 // E, or D for per-head q/k norms
  const int32_t* row_ids = nullptr;  // [rows of y] or nullptr
  Mat y;                             // [T, E] or [R, E]
};

// y = x W^T + bias
struct LinearArgs {
  Mat x;                                 // [M, K]
  const PackedWeight* weight = nullptr;  // N x K, one expert
  const float* bias = nullptr;           // [N] or nullptr
  Mat y;                                 // [M, N]
};

// cos/sin[t, i] = cos/sin(float(positions[t]) * inv_freq[i]) * scale; computed once a step, shared by all layers.
struct RopeTableArgs {
  const int32_t* positions = nullptr;  // [T]
  int64_t num_tokens = 0;
  const float* inv_freq = nullptr;  // [rotary_dim / 2]
  int64_t num_freqs = 0;
  float scale = 1.0f;
  float* cos = nullptr;  // [T, num_freqs]
  float* sin = nullptr;
};

// Rotates the first 2 * num_freqs dimensions of each head of q and k in place ("half" pairing: i with i + num_freqs),
// then writes k and v into their slots, rounded to the cache's dtype (KvSpec).
struct RopeAndStoreArgs {
  Mat q;                       // [T, H * D] in/out
  Mat k;                       // [T, G * D] in/out
  Mat v;                       // [T, G * D]
  const float* cos = nullptr;  // [T, num_freqs]; num_freqs == 0: no rotation
  const float* sin = nullptr;
  int64_t num_freqs = 0;
  const int64_t* slots = nullptr;  // [T]
  KvLayer kv;
};

// out[t, h] = softmax over the context of token t's sequence, up to and including its own position, of
// softcap(scale * q . k), times v. With window w only the last w positions count (itself included).
// With sinks: exp(sinks[h]) joins the denominator.
struct PagedAttentionArgs {
  Mat q;  // [T, H * D]
  int64_t num_heads = 0;
  const StepView* step = nullptr;
  KvLayer kv;
  float scale = 1.0f;
  int64_t window = 0;            // 0: whole context
  float softcap = 0.0f;          // 0: none; else cap * tanh(s / cap)
  const float* sinks = nullptr;  // [H] or nullptr
  Mat out;                       // [T, H * D]
};

enum class Activation : uint8_t {
  kSilu,           // silu(g) * u
  kGeluTanh,       // gelu_tanh(g) * u
  kClampedSwiglu,  // g' = min(g, limit), u' = clamp(u, +-limit): g' * sigmoid(alpha * g') * (u' + 1)   (gpt-oss)
};
struct ActivationSpec {
  Activation kind = Activation::kSilu;
  float alpha = 1.702f;
  float limit = 7.0f;
};
struct GatedActivationArgs {
  Mat gate_up;  // [T, 2F]: gate in columns [0, F), up in [F, 2F)
  ActivationSpec activation;
  Mat y;  // [T, F]
};

// y = down(act(gate_up(x)))
struct DenseFfnArgs {
  Mat x;                                  // [T, E]
  const PackedWeight* gate_up = nullptr;  // 2F x E
  const PackedWeight* down = nullptr;     // E x F
  ActivationSpec activation;
  Mat gate_up_y;  // [T, 2F] and
  Mat activated;  // [T, F], or empty where the backend fuses_ffn()
  Mat y;          // [T, E]
};

enum class RouteScore : uint8_t {
  kSoftmax,        // softmax over all X, then the k largest (Mixtral, Qwen)
  kSoftmaxOfTopK,  // the k largest logits, then softmax over them (gpt-oss)
  kSigmoid,        // sigmoid of each, then the k largest
};
// Ties go to the lower expert index. Experts of a token are listed by descending score.
struct MoeRouteArgs {
  Mat logits;  // [T, X]
  int64_t top_k = 0;
  RouteScore score = RouteScore::kSoftmax;
  bool renormalize = false;  // divide by the sum of the chosen
  float weight_scale = 1.0f;
  int32_t* experts = nullptr;  // [T, k]
  float* weights = nullptr;    // [T, k]
};

// How much an expert was used so far.
struct ExpertUse {
  int64_t num_tokens = 0;  // rows of moe_ffn that chose it
  int64_t num_reads = 0;   // times that its weights were read: passes of moe_ffn in which a row chose it
};

// y[t] = sum over the chosen experts, in ascending expert index, of weight * down(act(gate_up(x[t]))).
struct MoeFfnArgs {
  Mat x;  // [T, E]
  int64_t top_k = 0;
  const int32_t* experts = nullptr;       // [T, k]
  const float* weights = nullptr;         // [T, k]
  const PackedWeight* gate_up = nullptr;  // X experts of 2F x E
  const PackedWeight* down = nullptr;     // X experts of E x F
  const float* gate_up_bias = nullptr;    // [X, 2F] or nullptr
  const float* down_bias = nullptr;       // [X, E] or nullptr
  ActivationSpec activation;
  Mat y;                     // [T, E]
  ExpertUse* use = nullptr;  // [X] added to, or nullptr; the counts fall out of sorting the rows by expert
};

// residual += x * (gate ? sigmoid(gate[t]) : 1)
struct AddArgs {
  Mat residual;  // [T, E] in/out
  Mat x;         // [T, E]
  Mat gate;      // [T, 1] or data == nullptr
};

// x = cap * tanh(x / cap), in place
struct SoftcapArgs {
  Mat x;
  float cap = 0.0f;
};

struct CopyPagesArgs {
  KvLayer kv;
  std::span<const int32_t> from;
  std::span<const int32_t> to;
};

// The largest problem that will be asked of a backend; its scratch memory is sized from this once.
struct OpLimits {
  int64_t max_tokens = 0;      // T
  int64_t max_seqs = 0;        // S
  int64_t max_logit_rows = 0;  // R
  int64_t max_features = 0;    // largest K or N of a linear, lm_head's N excepted
  int64_t ffn_features = 0;    // F of the widest dense_ffn
  int64_t num_heads = 0;       // H
  int64_t num_kv_heads = 0;    // G
  int64_t head_dim = 0;        // D
  int64_t vocab_size = 0;      // V
  int64_t num_experts = 0;     // X, 0: dense
  int64_t experts_per_token = 0;
  int64_t moe_features = 0;  // F of one expert
  int64_t num_layers = 0;    // of the model whose steps are recorded, 0: none are
};

// Arguments are trusted here: check(args) in ops/check.h was called where they came from (bindings), or shapes were
// fixed when the model was built (decoder). One call at a time per backend; const after construction otherwise.
class Backend {
 public:
  virtual ~Backend() = default;
  [[nodiscard]] virtual const char* name() const = 0;  // "reference", "cpu:avx512", ...
  [[nodiscard]] virtual int num_threads() const = 0;

  // Memory. Where it is not the host's, what operations read and write must have come from allocate().
  [[nodiscard]] virtual bool shares_host_memory() const = 0;
  [[nodiscard]] virtual int64_t free_bytes() const = 0;  // on the device now; 0 where it shares the host's memory
  [[nodiscard]] virtual DeviceMemory allocate(int64_t bytes, const char* what, Contents contents) = 0;
  // Both return when the host's memory may be changed, or read. May be called from several threads.
  virtual void upload(void* to, const void* from, int64_t bytes) = 0;
  virtual void download(void* to, const void* from, int64_t bytes) = 0;

  [[nodiscard]] virtual int64_t packed_bytes(const WeightDesc& desc) const = 0;
  virtual void pack(const PackedWeight& to, const WeightSlice& slice) = 0;      // float formats
  virtual void pack_codes(const PackedWeight& to, const CodeSlice& slice) = 0;  // formats with codes
  [[nodiscard]] virtual int64_t page_size() const = 0;                          // P
  [[nodiscard]] virtual int64_t kv_page_bytes(const KvSpec& spec) const = 0;
  [[nodiscard]] virtual int64_t scratch_bytes(const OpLimits& limits) const = 0;
  // The only allocation; scratch_bytes(limits) bytes, with what steps that are recorded later may take.
  virtual void reserve(const OpLimits& limits) = 0;

  // Until the next call, work goes into a stream of the caller's (CUDA: a cudaStream_t), behind what was asked for
  // before; nullptr: back to the backend's own. A backend on the host has none.
  virtual void use_stream(void* stream) = 0;

  // Only where has_graphs(). run() does `work`, which calls operations and nothing else. It is called and recorded
  // where no record of the key is kept, and else what was recorded is repeated: shapes and addresses must follow from
  // the key. record() records without doing it. Records are dropped where they are too many, those of the earliest use
  // first.
  [[nodiscard]] virtual bool has_graphs() const = 0;
  virtual void record(uint64_t key, const std::function<void()>& work) = 0;
  virtual void run(uint64_t key, const std::function<void()>& work) = 0;
  [[nodiscard]] virtual int64_t num_graphs() const = 0;  // that are kept now; from any thread

  // Operations. Where the memory is the host's they are done when they return; elsewhere they may still be running, and
  // sample(), download() and wait() return when all that was called before is done.
  virtual void wait() = 0;
  virtual void embed(const EmbedArgs& args) = 0;
  virtual void rms_norm(const RmsNormArgs& args) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void rope_table(const RopeTableArgs& args) = 0;
  virtual void rope_and_store(const RopeAndStoreArgs& args) = 0;
  virtual void paged_attention(const PagedAttentionArgs& args) = 0;
  virtual void gated_activation(const GatedActivationArgs& args) = 0;
  // dense_ffn() has the bits of linear(), gated_activation() and linear(), which it calls unless the backend fuses
  // them: then what lies between them needs no memory of the caller.
  [[nodiscard]] virtual bool fuses_ffn() const { return false; }
  virtual void dense_ffn(const DenseFfnArgs& args) {
    linear({args.x, args.gate_up, nullptr, args.gate_up_y});
    gated_activation({args.gate_up_y, args.activation, args.activated});
    linear({args.activated, args.down, nullptr, args.y});
  }
  virtual void moe_route(const MoeRouteArgs& args) = 0;
  virtual void moe_ffn(const MoeFfnArgs& args) = 0;
  virtual void add(const AddArgs& args) = 0;
  virtual void softcap(const SoftcapArgs& args) = 0;
  virtual void sample(const SampleArgs& args) = 0;
  virtual void copy_pages(const CopyPagesArgs& args) = 0;
};

}  // namespace fastllm
