// fastllm._core: one bind_x per area. A binding converts, checks what only Python can get wrong, releases the GIL,
// calls.
#include "bindings/bindings.h"
#include "bindings/gil.h"

NB_MODULE(_core, m) {
  m.doc() = "The native core of fastllm. The public interface is the package `fastllm`.";
  // An engine that is still open when Python ends is no mistake of its user, so nothing is printed about it.
  nanobind::set_leak_warnings(false);
  fastllm::bind_gil(m);
  fastllm::bind_errors(m);
  fastllm::bind_ops_objects(m);
  fastllm::bind_ops(m);
  fastllm::bind_text(m);
  fastllm::bind_spec(m);
  fastllm::bind_engine(m);
  fastllm::bind_checkpoint(m);
  fastllm::bind_model(m);
  fastllm::bind_fault(m);
}
