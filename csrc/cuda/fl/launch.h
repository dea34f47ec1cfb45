// launch(stream, {"name", grid, block, smem_bytes}, kernel, arguments...). Called from .cu files, where the kernel is.
#pragma once

#include <array>
#include <functional>
#include <tuple>
#include <utility>

#include "cuda/fl/host.h"
#include "cuda/fl/types.h"

namespace fl {

// A grid or a block of size zero launches nothing.
template <class... Parameters, class... Arguments>
void launch(Stream& stream, const LaunchConfig& config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...));
  if (config.grid.count() == 0 || config.block == 0) return;
  std::tuple<Parameters...> values(arguments...);
#if defined(FL_SIMT)
  std::apply(
      [&](auto&... value) {
        (__builtin_clear_padding(&value), ...);  // the arguments are searched for host pointers
        const std::array<Stream::Argument, sizeof...(Parameters)> where{Stream::Argument{&value, sizeof(value)}...};
        stream.launch_emulated(config, [kernel, values] { std::apply(kernel, values); }, where);
      },
      values);
#else
  std::apply(
      [&](auto&... value) {
        const std::array<void*, sizeof...(Parameters)> where{&value...};
        stream.launch_cuda(config, reinterpret_cast<const void*>(kernel), where);
      },
      values);
#endif
}

}  // namespace fl
