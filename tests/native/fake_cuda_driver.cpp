// A libcuda.so.1 that only knows its version.
#include <cstdlib>

extern "C" __attribute__((visibility("default"))) int cuDriverGetVersion(int* version) {
  const char* value = std::getenv("FAKE_DRIVER");
  *version = value != nullptr ? std::atoi(value) : 13000;
  return 0;
}
