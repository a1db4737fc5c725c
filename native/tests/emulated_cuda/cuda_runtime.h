// Stands in for CUDA's own <cuda_runtime.h>, so that the C++ compiler builds a kernel's source and runs it here. Threads
// of a block are fibers, one at a time, that hand over where CUDA's meet: at a barrier of the block, or at an exchange
// within a warp, which all 32 must reach by the same call. What does not keep to that is an error of the launch.
// Which fiber goes first is the caller's choice: a result must not depend on it.
#ifndef EDGEBLT_EMULATED_CUDA_RUNTIME_H
#define EDGEBLT_EMULATED_CUDA_RUNTIME_H

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x) : x(x) {}
};

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
using cudaStream_t = struct EmulatedStream*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulated {

constexpr size_t kWarp = 32, kStackBytes = 64 << 10;

// Where a fiber waits: for the threads `[first, first + count)` to come to the same call of the same kind.
enum Kind { kRunning, kDone, kBlock, kShuffle, kBallot };

struct Fiber {
  ucontext_t start;
  jmp_buf place;  // where it waits: unlike swapcontext, a jump asks nothing of the system
  bool started;
  Kind kind;
  uint64_t given, taken[kWarp];  // what it brought to an exchange, and what all of its warp did
};

inline std::vector<Fiber> fibers;
inline std::vector<char> stacks;
inline jmp_buf scheduler;
inline size_t current;
inline std::function<void()> body;
inline unsigned order = 0;        // 0: the first thread goes first; 1: the last; else shuffled by this seed
inline bool failing = false;      // launches from now on are refused
inline int launches = 0;
inline cudaStream_t last_stream = nullptr;

inline void run_body() {
  body();
  fibers[current].kind = kDone;
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void wait(Kind kind) {
  fibers[current].kind = kind;
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

// Until it waits, or is done. In a frame of its own, so that jumps back to it change no variable of others.
__attribute__((noinline)) inline void resume(size_t fiber) {
  current = fiber;
  threadIdx.x = static_cast<unsigned>(fiber);
  if (_setjmp(scheduler)) return;
  if (fibers[fiber].started) _longjmp(fibers[fiber].place, 1);
  fibers[fiber].started = true;
  setcontext(&fibers[fiber].start);
}

__attribute__((noinline)) inline void make_fiber(Fiber& fiber, char* stack) {
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stack;
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, run_body, 0);
  fiber.started = false;
  fiber.kind = kRunning;
}

// Lets go of all that wait in `[first, first + count)` if they have all come to one call; whether it did.
inline bool release(size_t first, size_t count, bool block) {
  const Kind kind = fibers[first].kind;
  if (kind == kRunning || kind == kDone || (kind == kBlock) != block) return false;
  for (size_t i = first; i < first + count; ++i) {
    if (fibers[i].kind != kind) return false;
  }
  for (size_t i = first; i < first + count; ++i) {
    if (!block) {
      for (size_t lane = 0; lane < count; ++lane) fibers[i].taken[lane] = fibers[first + lane].given;
    }
    fibers[i].kind = kRunning;
  }
  return true;
}

inline cudaError_t run_block() {
  const size_t count = blockDim.x;
  std::vector<size_t> turns(count);
  std::iota(turns.begin(), turns.end(), size_t{0});
  if (order == 1) std::reverse(turns.begin(), turns.end());
  uint64_t chance = order;
  for (size_t i = count; order > 1 && i > 1; --i) {
    chance = chance * 6364136223846793005U + 1442695040888963407U;
    std::swap(turns[i - 1], turns[(chance >> 33) % i]);
  }
  fibers.resize(count);
  stacks.resize(count * kStackBytes);
  for (size_t i = 0; i < count; ++i) make_fiber(fibers[i], &stacks[i * kStackBytes]);
  for (;;) {
    for (const size_t turn : turns) {
      if (fibers[turn].kind == kRunning) resume(turn);
    }
    bool done = true, released = release(0, count, true);
    for (const Fiber& fiber : fibers) done &= fiber.kind == kDone;
    if (done) return cudaSuccess;
    for (size_t first = 0; first < count; first += kWarp) released |= release(first, kWarp, false);
    if (!released) return cudaErrorLaunchFailure;  // some wait for others that never come
  }
}

inline uint64_t exchange(Kind kind, uint64_t given, size_t lane) {
  fibers[current].given = given;
  wait(kind);
  return fibers[current].taken[lane];
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::kBlock); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulated::exchange(emulated::kShuffle, bits, (emulated::current ^ static_cast<size_t>(mask)) % emulated::kWarp);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __ballot_sync(unsigned, int predicate) {
  emulated::exchange(emulated::kBallot, predicate != 0, 0);
  unsigned all = 0;
  for (size_t lane = 0; lane < emulated::kWarp; ++lane) {
    all |= static_cast<unsigned>(emulated::fibers[emulated::current].taken[lane]) << lane;
  }
  return all;
}

inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(Parameters...), Arguments&&... arguments) {
  using namespace emulated;
  if (failing || !how->gridDim.x || !how->blockDim.x || how->blockDim.x > 1024 || how->blockDim.x % kWarp) {
    return cudaErrorInvalidConfiguration;
  }
  ++launches;
  last_stream = how->stream;
  gridDim = how->gridDim, blockDim = how->blockDim;
  body = [&] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    if (const cudaError_t error = run_block()) return error;
  }
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "threads wait for others that never come" : "invalid configuration argument";
}

#endif
