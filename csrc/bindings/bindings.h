#pragma once

#include <nanobind/nanobind.h>

namespace fastllm {

void bind_errors(nanobind::module_& m);  // Error -> the classes of fastllm.errors
void bind_ops_objects(nanobind::module_& m);
void bind_ops(nanobind::module_& m);
void bind_text(nanobind::module_& m);
void bind_spec(nanobind::module_& m);
void bind_engine(nanobind::module_& m);
void bind_checkpoint(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_fault(nanobind::module_& m);  // test builds only

}  // namespace fastllm
