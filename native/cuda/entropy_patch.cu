// What of edgeblt::EntropyPatch runs on the device: a warp finds a row's entropy, and one warp decides where patches
// start, by ../patch_rules.h. Compiled without contraction of products and sums, so that both kernels below, and the
// decisions of any two calls, round alike.
#include <cuda_runtime.h>

#include <cmath>

#include "entropy_patch.h"

namespace edgeblt::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xFFFFFFFFU;
constexpr int kMostWarps = 32;  // of a block
constexpr int kWarpsOfRows = 4;  // of a block, where there are too many rows for one
constexpr int64_t kMostRows = int64_t{kWarpsOfRows} * INT32_MAX;
constexpr float kLowest = -87;  // e ** d counts as 0 below, as in ../entropies.h: what overflowed never meets a 0

__device__ float largest_of_warp(float value) {
  for (int apart = kWarp / 2; apart; apart /= 2) value = fmaxf(value, __shfl_xor_sync(kAll, value, apart));
  return value;
}

// Every lane gets the same bits: at each step two lanes add the same two numbers.
__device__ float sum_of_warp(float value) {
  for (int apart = kWarp / 2; apart; apart /= 2) value += __shfl_xor_sync(kAll, value, apart);
  return value;
}

// H = log(sum e**d) - (sum e**d * d) / (sum e**d) with d = logit - largest logit. Which lane adds what, and in which
// order, follows from the width alone, so a row has the same bits wherever it lies. All lanes of a warp call this.
__device__ float entropy_of_row(const float* logits, int64_t width, int lane) {
  float largest = -INFINITY;
  for (int64_t i = lane; i < width; i += kWarp) largest = fmaxf(largest, logits[i]);
  largest = largest_of_warp(largest);
  float total = 0, weighted = 0;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float difference = logits[i] - largest;
    if (difference > kLowest) {
      const float share = expf(difference);
      total += share;
      weighted += share * difference;
    }
  }
  total = sum_of_warp(total);
  weighted = sum_of_warp(weighted);
  return logf(total) - weighted / total;
}

// Each warp of the grid finds one row's entropy.
__device__ void find_entropies(const PatchWork& work) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (row >= work.length) return;  // the whole warp
  const float entropy = entropy_of_row(work.logits + row * work.width, work.width, lane);
  if (lane == 0) work.entropies[row] = entropy;
}

// One warp, 32 rows at a time. Whether the rule itself makes a start needs no other row's decision; the last start up
// to a row is the highest bit up to its own of all lanes' answers.
__device__ void decide(const PatchWork& work) {
  const int lane = static_cast<int>(threadIdx.x);
  int64_t last = last_start(work.settings, work.position, work.state);
  for (int64_t begin = 0; begin < work.length; begin += kWarp) {
    const int64_t row = begin + lane, next = work.position + row + 1;
    const bool inside = row < work.length;
    State state{};
    bool start = false;
    if (inside) {
      const State previous = row ? state_after(work.ids[row - 1], work.entropies[row - 1]) : work.state;
      state = state_after(work.ids[row], work.entropies[row]);
      start = starts(work.settings, next, work.ids[row], state, previous);
    }
    const unsigned all = __ballot_sync(kAll, start), mine = all & (kAll >> (kWarp - 1 - lane));
    const int64_t end = work.position + begin + kWarp;  // the position that lane 31 decides upon
    if (inside) {
      const int64_t own_last = mine ? end - __clz(static_cast<int>(mine)) : last;
      work.patch_starts[row] = starts_within_maximum(work.settings, next, own_last, start, state);
      work.states[row] = state;
    }
    if (all) last = end - __clz(static_cast<int>(all));
  }
}

// For as many rows as a block has warps: decoding and drafts take one launch.
__global__ void __launch_bounds__(kMostWarps * kWarp) entropies_and_starts(PatchWork work) {
  find_entropies(work);
  __syncthreads();
  if (threadIdx.x < kWarp) decide(work);
}

__global__ void __launch_bounds__(kWarpsOfRows * kWarp) entropies(PatchWork work) { find_entropies(work); }

__global__ void __launch_bounds__(kWarp) patch_starts(PatchWork work) { decide(work); }

cudaError_t launch(void (*kernel)(PatchWork), int64_t blocks, int warps, const PatchWork& work, cudaStream_t stream) {
  cudaLaunchConfig_t how{};
  how.gridDim = dim3(static_cast<unsigned>(blocks));
  how.blockDim = dim3(static_cast<unsigned>(warps * kWarp));
  how.stream = stream;
  return cudaLaunchKernelEx(&how, kernel, work);
}

}  // namespace

const char* launch_entropy_patch(const PatchWork& work, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (work.length < 1) return nullptr;
  if (work.length > kMostRows) return "more rows at once than a grid has blocks; feed less at once";
  cudaError_t error = cudaSuccess;
  if (work.length <= kMostWarps) {
    error = launch(entropies_and_starts, 1, static_cast<int>(work.length), work, stream);
  } else {
    error = launch(entropies, (work.length + kWarpsOfRows - 1) / kWarpsOfRows, kWarpsOfRows, work, stream);
    if (error == cudaSuccess) error = launch(patch_starts, 1, 1, work, stream);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // reported here, so not to whoever asks next
  return cudaGetErrorString(error);
}

}  // namespace edgeblt::cuda
