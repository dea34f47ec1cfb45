// Fault points for the tests of this package (core/fault.h). A release has neither the points nor these functions.
#include "bindings/bindings.h"
#include "core/fault.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {

#ifdef FASTLLM_FAULTS
namespace {

fault::Point point_of(std::string_view name) {
  if (name == "alloc") return fault::Point::kAlloc;
  if (name == "kernel") return fault::Point::kKernel;
  if (name == "queue") return fault::Point::kQueue;
  if (name == "io") return fault::Point::kIo;
  fail(ErrorKind::kInvalidRequest, "fault point \"", name, "\" is not alloc, kernel, queue or io");
}

}  // namespace

void bind_fault(nb::module_& m) {
  m.def(
      "arm_fault", [](const char* point, int64_t nth, int64_t count) { fault::arm(point_of(point), nth, count); },
      "point"_a, "nth"_a, "count"_a = 1,
      "For tests: passes nth .. nth + count - 1 of the point fail from now on; 0 disarms.");
  m.def("fault_passes", [](const char* point) { return fault::passes(point_of(point)); }, "point"_a);
}
#else
void bind_fault(nb::module_&) {}
#endif

}  // namespace fastllm
