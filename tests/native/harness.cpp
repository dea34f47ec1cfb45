#include "harness.h"

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <vector>

namespace fastllm::test {
namespace {

struct Test {
  const char* name;
  Body body;
};

std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

Options& mutable_options() {
  static Options values;
  return values;
}

bool parse(int argc, char** argv) {
  Options& o = mutable_options();
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const char* value = argv[i + 1];
    if (name == "--seed") {
      o.seed = std::strtoull(value, nullptr, 10);
    } else if (name == "--schedules") {
      o.schedules = std::atoll(value);
    } else if (name == "--stride") {
      o.stride = std::atoll(value);
    } else if (name == "--only") {
      o.only = value;
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && o.schedules > 0 && o.stride > 0;
}

}  // namespace

const Options& options() { return mutable_options(); }

bool add_test(const char* name, Body body) {
  tests().push_back({name, body});
  return true;
}

}  // namespace fastllm::test

int main(int argc, char** argv) {
  using namespace fastllm::test;
  if (!parse(argc, argv)) {
    std::cerr << "usage: " << argv[0] << " [--only TEXT] [--seed S] [--schedules N] [--stride N]\n";
    return 2;
  }
  int num_failed = 0;
  for (const Test& test : tests()) {
    if (std::string(test.name).find(options().only) == std::string::npos) continue;
    const auto start = std::chrono::steady_clock::now();
    try {
      test.body();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      std::cout << "ok    " << test.name << "  " << took.count() << " s" << std::endl;
    } catch (const std::exception& e) {
      ++num_failed;
      std::cout << "FAIL  " << test.name << ": " << e.what() << "  (seed " << options().seed << ")" << std::endl;
    }
  }
  return num_failed == 0 ? 0 : 1;
}
