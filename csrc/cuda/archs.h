// What a library that was built for some architectures runs on.
#pragma once

#include <charconv>
#include <cstdint>
#include <string_view>

namespace fastllm {

// Whether code of one entry of CMAKE_CUDA_ARCHITECTURES runs on a chip (80, 89, 90, ...):
//   80-real      machine code: the same generation (the tens), not older
//   90a-real     machine code of that chip alone
//   80-virtual   PTX, which the driver compiles: any chip that is not older
//   80           both
inline bool runs_on(std::string_view entry, int chip) {
  int built = 0;
  const auto [end, error] = std::from_chars(entry.data(), entry.data() + entry.size(), built);
  if (error != std::errc{}) return false;
  const std::string_view rest(end, static_cast<std::size_t>(entry.data() + entry.size() - end));
  const bool is_specific = rest.starts_with('a') || rest.starts_with('f');
  if (is_specific) return chip == built;
  if (chip < built) return false;
  return rest == "-real" ? chip / 10 == built / 10 : true;
}

// `archs` is a list of entries, e.g. "80-real, 90a-real, 80-virtual".
inline bool any_runs_on(std::string_view archs, int chip) {
  while (!archs.empty()) {
    const std::size_t comma = archs.find(',');
    std::string_view entry = archs.substr(0, comma);
    while (entry.starts_with(' ')) entry.remove_prefix(1);
    if (runs_on(entry, chip)) return true;
    archs = comma == std::string_view::npos ? std::string_view{} : archs.substr(comma + 1);
  }
  return false;
}

}  // namespace fastllm
