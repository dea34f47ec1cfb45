// The arrays of a step in memory of the backend: the step's own where the host shares it, else one copy of all.
#pragma once

#include <vector>

#include "engine/step.h"
#include "model/decoder.h"
#include "ops/ops.h"

namespace fastllm {

class DeviceStep {
 public:
  // The only allocation. Steps stay within `limits`.
  DeviceStep(Backend& backend, const StepLimits& limits);

  struct Arrays {
    StepView view;
    std::span<const int32_t> logit_rows;
    std::span<const int32_t> pooled_rows;
  };
  // Valid until the next call.
  Arrays upload(const Step& step);
  // Bytes on the device that the constructor takes.
  static int64_t bytes(const Backend& backend, const StepLimits& limits);

 private:
  Backend& backend_;
  DeviceMemory memory_;
  std::vector<std::byte> staging_;
};

}  // namespace fastllm
