// Loops that every level compiles for itself: the compiler vectorises them for the level's instructions. All in an
// unnamed namespace, or the linker would keep one level's copy for all.
#ifndef EDGEBLT_COMMON_H
#define EDGEBLT_COMMON_H

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace edgeblt {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // The exponent is rebiased by a product, which also normalises subnormal numbers.
  return from_bits(to_bits(from_bits(magnitude << 13) * from_bits(0x77800000)) | sign);  // 2 ** 112
}

inline float read_scale(const Scales& scales, int64_t index) {
  if (!scales.half) {
    float scale;
    std::memcpy(&scale, static_cast<const float*>(scales.values) + index, sizeof scale);
    return scale;
  }
  uint16_t half;
  std::memcpy(&half, static_cast<const uint16_t*>(scales.values) + index, sizeof half);
  return half_to_float(half);
}

// A row's scales, one a block, in `out` [blocks]; zeros to the next multiple of 8. With kRows = 2 a pair's, in turn.
template <int kRows = 1>
inline void block_scales(const Scales& scales, int64_t row, int64_t blocks, float* out) {
  for (int64_t index = 0, block = 0; index < scales.per_row; ++index) {
    float some[kRows];
    for (int i = 0; i < kRows; ++i) some[i] = read_scale(scales, (row * scales.per_row + index) * kRows + i);
    for (int64_t times = 0; times < scales.blocks_per_scale && block < blocks; ++times, ++block) {
      for (int i = 0; i < kRows; ++i) out[block * kRows + i] = some[i];
    }
  }
  for (int64_t place = blocks * kRows; place % 8; ++place) out[place] = 0;
}

// The values of a masked row as bytes: where they are, or widened from 4 bits into `wide`.
inline const int8_t* row_values(const MaskedWeights& weights, int64_t row, int8_t* wide) {
  const uint8_t* stored = weights.values + weights.offsets[row];
  if (weights.bits == 8) return reinterpret_cast<const int8_t*>(stored);
  const int64_t bytes = weights.offsets[row + 1] - weights.offsets[row];
  for (int64_t byte = 0; byte < bytes; ++byte) {
    wide[2 * byte] = static_cast<int8_t>((stored[byte] & 15) - 8);
    wide[2 * byte + 1] = static_cast<int8_t>((stored[byte] >> 4) - 8);
  }
  return wide;
}

// Rounds to the nearest integer, ties to even, for magnitudes below 2 ** 22.
inline float round_even(float value) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2 ** 23: its unit is 1
  return (value + kMagic) - kMagic;
}

// See Kernels::quantize. A block's scale is its largest magnitude / 127, a code the value * (127 / largest) rounded to
// even; all codes are 0 where that is below 2 ** -120, or where a value is not finite, which the scale then passes on.
inline void quantize_row(
    const float* values, int64_t columns, int64_t block_size, int8_t* codes, float* scales, int32_t* sums) {
  constexpr uint32_t kSmallest = 7u << 23, kInfinity = 0x7f800000;
  for (int64_t begin = 0, block = 0; begin < columns; begin += block_size, ++block) {
    const int64_t count = columns - begin < block_size ? columns - begin : block_size;
    const float* in = values + begin;
    int8_t* out = codes + begin;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t magnitude = to_bits(in[i]) & 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    if (largest < kSmallest || largest >= kInfinity) {
      std::memset(out, 0, static_cast<size_t>(count));
      scales[block] = largest < kSmallest ? 0.0F : from_bits(0x7fc00000);
      sums[block] = 0;
      continue;
    }
    const float inverse = 127.0F / from_bits(largest);
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t code = static_cast<int32_t>(round_even(in[i] * inverse));
      out[i] = static_cast<int8_t>(code);
      sum += code;
    }
    scales[block] = from_bits(largest) / 127.0F;
    sums[block] = sum;
  }
  std::memset(codes + columns, 0, static_cast<size_t>(padded_columns(columns, block_size) - columns));
}

// A row's floats per block: 64-byte aligned, kept by the thread from call to call.
template <int kPurpose>
inline float* block_buffer(int64_t count) {
  thread_local std::vector<float> buffer;
  if (buffer.size() < static_cast<size_t>(count) + 16) buffer.resize(static_cast<size_t>(count) + 16);
  return buffer.data() + (-(reinterpret_cast<uintptr_t>(buffer.data()) / 4) & 15);
}

}  // namespace
}  // namespace edgeblt

#endif
