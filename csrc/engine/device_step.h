// The arrays of a step in memory of the backend: the step's own where the host shares it, else one copy of all.
#pragma once

#include <span>
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
  // The same arrays on the device, valid until the next call.
  Arrays upload(const Arrays& host);
  // A step of one token and one row of logits for each sequence, padded to `num_seqs` sequences and to rows of
  // `max_pages` in the block table, so that shapes and addresses follow from these two. What is added has context
  // length 0, slot -1 and token 0: it writes nothing that others read.
  Arrays upload_decode(const Arrays& host, int64_t num_seqs, int64_t max_pages);
  // Bytes on the device that the constructor takes.
  static int64_t bytes(const Backend& backend, const StepLimits& limits);

 private:
  Arrays send(const Arrays& host);

  Backend& backend_;
  DeviceMemory memory_;
  std::vector<std::byte> staging_;
  Step padded_;
};

}  // namespace fastllm
