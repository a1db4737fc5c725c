// The CUDA kernel of edgeblt::EntropyPatch, run by the CPU: for tests/test_cuda_kernel.py, which calls it with ctypes.
#include "../cuda/entropy_patch.cu"

extern "C" {

// Null, or why the kernel failed. `order`: which thread goes first, see cuda_runtime.h.
const char* run_entropy_patch(const edgeblt::cuda::PatchWork* work, void* stream, unsigned order) {
  emulated::order = order;
  return edgeblt::cuda::launch_entropy_patch(*work, stream);
}

void refuse_launches(bool refuse) { emulated::failing = refuse; }
int launches() { return emulated::launches; }
const void* last_stream() { return emulated::last_stream; }
}
