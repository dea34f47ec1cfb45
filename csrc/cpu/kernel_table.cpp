#include "cpu/kernel_table.h"

#include "core/error.h"

FASTLLM_DECLARE_KERNELS(scalar)
#if defined(__x86_64__)
FASTLLM_DECLARE_KERNELS(avx2)
FASTLLM_DECLARE_KERNELS(avx512)
FASTLLM_DECLARE_KERNELS(vnni)
FASTLLM_DECLARE_KERNELS(bf16)
#endif

#define FASTLLM_KERNEL_TABLE(isa)                                                                          \
  {isa::kLinearKernels,       isa::kLinearIntKernels, isa::kLinearDequantKernels, &isa::kAttentionKernels, \
   &isa::kElementwiseKernels, &isa::kSamplingKernels, &isa::kProbeKernels}

namespace fastllm::cpu {
namespace {

constinit const KernelTable kScalarTable = FASTLLM_KERNEL_TABLE(scalar);
#if defined(__x86_64__)
constinit const KernelTable kAvx2Table = FASTLLM_KERNEL_TABLE(avx2);
constinit const KernelTable kAvx512Table = FASTLLM_KERNEL_TABLE(avx512);
constinit const KernelTable kVnniTable = FASTLLM_KERNEL_TABLE(vnni);
constinit const KernelTable kBf16Table = FASTLLM_KERNEL_TABLE(bf16);
#endif

}  // namespace

const KernelTable& kernels_for(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return kScalarTable;
#if defined(__x86_64__)
    case CpuIsa::kAvx2:
      return kAvx2Table;
    case CpuIsa::kAvx512:
      return kAvx512Table;
    case CpuIsa::kVnni:
      return kVnniTable;
    case CpuIsa::kBf16:
      return kBf16Table;
#else
    case CpuIsa::kAvx2:
    case CpuIsa::kAvx512:
    case CpuIsa::kVnni:
    case CpuIsa::kBf16:
      break;
#endif
  }
  fail(ErrorKind::kDevice, "cpu: this build has no kernels for level ", name_of(isa), "; use \"cpu:scalar\"");
}

}  // namespace fastllm::cpu
