#include "kernels.h"

namespace edgeblt {

const Kernels& kernels([[maybe_unused]] Level level) {
#if defined(__x86_64__)
  if (level == kAvx512) return kAvx512Kernels;
  if (level == kAvx2) return kAvx2Kernels;
#elif defined(__aarch64__)
  if (level == kNeon) return kNeonKernels;
#endif
  return kScalarKernels;
}

}  // namespace edgeblt
