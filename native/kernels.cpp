#include "kernels.h"

namespace edgeblt {

const Kernels& kernels([[maybe_unused]] Level level) {
#if defined(__x86_64__)
#if !defined(EDGEBLT_NO_AMX)
  if (level == kAmx) return kAmxKernels;
#endif
  if (level == kAvx512) return kAvx512Kernels;
#if !defined(EDGEBLT_NO_AVXVNNI)
  if (level == kAvxVnni) return kAvxVnniKernels;
#endif
  if (level == kAvx2) return kAvx2Kernels;
#elif defined(__aarch64__)
#if !defined(EDGEBLT_NO_I8MM)
  if (level == kI8mm) return kI8mmKernels;
#endif
  if (level == kNeon) return kNeonKernels;
#endif
  return kScalarKernels;
}

}  // namespace edgeblt
