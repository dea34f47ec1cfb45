// The one exception type of the native core. Bindings map each kind to a Python class, once.
// A message says where, what was got, what was wanted, what to do.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace fastllm {

enum class ErrorKind {
  kInvalidRequest,    // fastllm.InvalidRequestError (a ValueError): the caller's argument is wrong
  kCheckpoint,        // fastllm.CheckpointError: a file is wrong
  kUnsupportedModel,  // fastllm.UnsupportedModelError: well-formed, but not known here
  kOutOfMemory,       // fastllm.OutOfMemoryError: a plan does not fit, or an allocation failed
  kDevice,            // fastllm.DeviceError: the machine cannot do what was asked
  kQueueFull,         // fastllm.QueueFullError: the bounded waiting queue is full
  kEngineClosed,      // fastllm.EngineClosedError: used after close(), or after fork()
  kInternal,          // fastllm.InternalError: a bug of ours
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  [[nodiscard]] ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// fail(kInvalidRequest, "linear: K = ", k, " is not ...") throws Error with the parts joined.
template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, Parts&&... parts) {
  std::ostringstream text;
  (text << ... << std::forward<Parts>(parts));
  throw Error(kind, text.str());
}

// For what cannot happen unless there is a bug here. Never for input.
#define FASTLLM_CHECK(condition, ...)                                                                           \
  do {                                                                                                          \
    if (!(condition)) {                                                                                         \
      ::fastllm::fail(::fastllm::ErrorKind::kInternal, "internal check failed: " #condition ": ", __VA_ARGS__); \
    }                                                                                                           \
  } while (false)

}  // namespace fastllm
