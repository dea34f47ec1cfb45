// Benchmarks are registered by hand, because their names and shares need the limits of the machine first.
#pragma once

namespace fastllm::bench {

void register_in_cache();
void register_linear();

}  // namespace fastllm::bench
