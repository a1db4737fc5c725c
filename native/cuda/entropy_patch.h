// What the two halves of the CUDA kernel of edgeblt::EntropyPatch share: the operator, for the C++ compiler, and what
// runs on the device, for nvcc.
#ifndef EDGEBLT_CUDA_ENTROPY_PATCH_H
#define EDGEBLT_CUDA_ENTROPY_PATCH_H

#include <cstdint>

#include "../patch_rules.h"

namespace edgeblt::cuda {

// One run of the operator. Pointers lie in the device's memory; everything else travels with the launch.
struct PatchWork : PatchInputs {
  float* entropies;     // [length]
  bool* patch_starts;   // [length]
  State* states;        // [length]
};

// Puts `work` into `stream`, a cudaStream_t, and waits for nothing. Null, or CUDA's words on why it could not.
const char* launch_entropy_patch(const PatchWork& work, void* stream);

}  // namespace edgeblt::cuda

#endif
