// A model with random weights that takes microseconds a step, for tests of what surrounds it.
#pragma once

#include <memory>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/model_executor.h"

namespace fastllm::test {

// Two layers, 2 heads on 1 key/value head; the second layer has experts.
ModelSpec tiny_spec();
EngineConfig tiny_config(const Backend& backend);

// Spec, weights, executor: all that a real engine allocates.
std::shared_ptr<Model> make_tiny_model(std::unique_ptr<Backend> backend);
std::unique_ptr<Executor> make_tiny_executor(std::unique_ptr<Backend> backend, EngineConfig& config);

}  // namespace fastllm::test
