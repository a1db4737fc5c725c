// What the NEON kernels share. They need the dot products of signed bytes of ARMv8.2.
#ifndef EDGEBLT_NEON_H
#define EDGEBLT_NEON_H

#include <arm_neon.h>

#include <type_traits>

#include "common.h"

#define EDGEBLT_UNROLL _Pragma("GCC unroll 4")

namespace edgeblt {

void dense_neon(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void dense_i8mm(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void sparse_neon(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void masked_neon(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);

namespace {

constexpr int kRowsAtOnce = 4;  // of inputs

inline int8x16_t load(const void* bytes) { return vld1q_s8(static_cast<const int8_t*>(bytes)); }

// Adds the sums of a block, times its scales, to `totals`; sums start anew.
template <int kRows>
inline void flush(int32x4_t* sums, const float32x4_t* scales, float32x4_t* totals) {
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    totals[m] = vfmaq_f32(totals[m], vcvtq_f32_s32(sums[m]), scales[m]);
    sums[m] = vdupq_n_s32(0);
  }
}

// Calls `function(count, m)` for rows of inputs, four at a time and then one by one.
template <typename Function>
inline void by_four(int64_t begin, int64_t end, Function function) {
  for (; begin + kRowsAtOnce <= end; begin += kRowsAtOnce) function(std::true_type{}, begin);
  for (; begin < end; ++begin) function(std::false_type{}, begin);
}

}  // namespace
}  // namespace edgeblt

#endif
