#include "bindings/bindings.h"
#include "core/error.h"

namespace nb = nanobind;

namespace fastllm {
namespace {

const char* python_class(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidRequest:
      return "InvalidRequestError";
    case ErrorKind::kCheckpoint:
      return "CheckpointError";
    case ErrorKind::kUnsupportedModel:
      return "UnsupportedModelError";
    case ErrorKind::kOutOfMemory:
      return "OutOfMemoryError";
    case ErrorKind::kDevice:
      return "DeviceError";
    case ErrorKind::kQueueFull:
      return "QueueFullError";
    case ErrorKind::kEngineClosed:
      return "EngineClosedError";
    case ErrorKind::kInternal:
      return "InternalError";
  }
  return "InternalError";
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& p, void*) {
    try {
      std::rethrow_exception(p);
    } catch (const Error& e) {
      // The classes live in Python; they are looked up when needed, so the module keeps no reference to them.
      const nb::object type = nb::module_::import_("fastllm.errors").attr(python_class(e.kind()));
      PyErr_SetString(type.ptr(), e.what());
    }
  });
}

}  // namespace fastllm
