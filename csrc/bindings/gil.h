// Releasing the GIL, safely until the very end of the interpreter.
//
// When Python ends, a daemon thread that asks for the GIL is ended by pthread_exit (before 3.14): the forced unwinding
// runs through C++ frames that must not throw, and the process dies of std::terminate, whatever its exit code was to
// be. So, from the atexit hook on, a thread that comes back from native code waits for ever in GilRelease instead; only
// the thread that ends the interpreter goes on. The hook waits for those that were already asking.
#pragma once

#include "bindings/bindings.h"

namespace fastllm {

class GilRelease {
 public:
  GilRelease();
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// Registers the atexit hook.
void bind_gil(nanobind::module_& m);

}  // namespace fastllm
