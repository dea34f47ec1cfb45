// Runs steps with a real model: copy pages, decoder forward, sample. Owns everything that a running model needs.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/device_step.h"
#include "engine/executor.h"
#include "engine/read_bytes.h"
#include "kv/kv_storage.h"
#include "model/decoder.h"
#include "model/weight_slots.h"

namespace fastllm {

// A model and the backend that runs it. Weights are allocated by allocate_weights(), after the plan was accepted.
// enable_shared_from_this: an engine may outlive the Python object; bindings must share this ownership.
struct Model : std::enable_shared_from_this<Model> {
  Model(ModelSpec model_spec, std::unique_ptr<Backend> model_backend, WeightPlan weight_plan);

  [[nodiscard]] std::vector<KvSpec> kv_specs(DType kv_dtype) const;
  // Bytes of the parts of the plan.
  [[nodiscard]] int64_t weight_bytes() const;
  [[nodiscard]] int64_t step_bytes(const StepLimits& limits) const;
  [[nodiscard]] int64_t kv_page_bytes(DType kv_dtype) const;
  void allocate_weights();
  [[nodiscard]] const ModelWeights& loaded_weights() const;

  ModelSpec spec;
  std::unique_ptr<Backend> backend;
  WeightPlan plan;
  std::unique_ptr<ModelWeights> weights;
  std::atomic<bool> is_in_use{false};  // by a ModelClaim
};

// The backend's scratch memory and threads serve one executor at a time: a second one throws kInvalidRequest.
class ModelClaim {
 public:
  explicit ModelClaim(std::shared_ptr<Model> model);
  ~ModelClaim();
  ModelClaim(const ModelClaim&) = delete;
  ModelClaim& operator=(const ModelClaim&) = delete;

  Model* operator->() const { return model_.get(); }
  Model& operator*() const { return *model_; }

 private:
  std::shared_ptr<Model> model_;
};

class ModelExecutor final : public Executor {
 public:
  ModelExecutor(std::shared_ptr<Model> model, const StepLimits& limits, int64_t num_pages, DType kv_dtype);
  void execute(Step& step) override;
  [[nodiscard]] ExpertTotals expert_totals() override;

 private:
  // Decode steps are padded to few shapes, so that a backend that records steps can repeat them.
  struct DecodeShape {
    int64_t num_seqs;
    int64_t max_pages;
    [[nodiscard]] uint64_t key() const {
      return static_cast<uint64_t>(num_seqs) << 32 | static_cast<uint64_t>(max_pages);
    }
  };
  [[nodiscard]] DecodeShape shape_for(int64_t num_seqs, int64_t max_pages) const;
  [[nodiscard]] std::vector<DecodeShape> likely_shapes() const;
  void record_likely_steps();
  float* run_model(const Step& step);
  void pool(const Step& step, std::span<const int32_t> token_rows);

  ModelClaim model_;
  KvStorage kv_;
  Decoder decoder_;
  DeviceStep device_step_;
  StepLimits limits_;
  ReadBytes read_bytes_;
  std::vector<float> hidden_;  // [T, E] of a step, where the host does not share the memory of the backend
};

}  // namespace fastllm
