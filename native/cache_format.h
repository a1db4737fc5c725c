// Keys and values as a cache stores them, for every level to compile for its instructions: slot by slot
// [kv_heads, capacity, slot_elements], float32, half precision, or int8 with one scale for a slot of a head. In an
// unnamed namespace for the reason given in common.h.
//
// A slot in int8 is codes from -127 to 127, then k, for the scale 2 ** (k / 4): the smallest for which no code is larger.
// k is 127, for a scale that is not a number, where a value is not finite.
#ifndef EDGEBLT_CACHE_FORMAT_H
#define EDGEBLT_CACHE_FORMAT_H

#include <algorithm>

#include "common.h"
#include "lanes.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace edgeblt {
namespace {

struct Half {
  uint16_t bits;
};
constexpr float kLargestHalf = 65504;
constexpr int kNoScale = 127;

// 2 ** (k / 4) for -500 <= k <= 500.
inline float quarter_power(int k) {
  constexpr float kRoots[] = {1.0F, 1.189207115F, 1.414213562F, 1.681792831F};
  return kRoots[k & 3] * from_bits(static_cast<uint32_t>((k >> 2) + 127) << 23);
}

// The k of a slot whose largest magnitude is given.
inline int scale_of(float largest) {
  if (!(largest <= 3.4e38F)) return kNoScale;
  const uint32_t bits = to_bits(largest / 127.0F);
  const float mantissa = from_bits((bits & 0x7fffff) | 0x3f800000);
  int k = (static_cast<int>(bits >> 23) - 127) * 4;
  for (int step = 0; step < 4; ++step) k += mantissa > quarter_power(step);
  return std::clamp(k, -128, kNoScale - 1);
}

template <int kCount>
EDGEBLT_INLINE Floats<kCount> load_elements(const float* values) {
  return load_floats<kCount>(values);
}

template <int kCount>
EDGEBLT_INLINE Floats<kCount> load_elements(const Half* values) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    return (Floats<16>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  }
#endif
#if defined(__F16C__)
  if constexpr (kCount == 8) {
    return (Floats<8>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
  }
#elif defined(__aarch64__)
  if constexpr (kCount == 4) {
    return (Floats<4>)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(values))));
  }
#endif
  Floats<kCount> lanes;
  for (int lane = 0; lane < kCount; ++lane) lanes[lane] = half_to_float(values[lane].bits);
  return lanes;
}

template <int kCount>
EDGEBLT_INLINE Floats<kCount> load_elements(const int8_t* codes) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    return (Floats<16>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
#endif
#if defined(__AVX2__)
  if constexpr (kCount == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    return (Floats<8>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
#endif
  Floats<kCount> lanes;
  for (int lane = 0; lane < kCount; ++lane) lanes[lane] = codes[lane];
  return lanes;
}

// Rounds to the nearest, ties to even; magnitudes up to kLargestHalf, and what is not a number.
inline uint16_t float_to_half(float value) {
  const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude < 0x38800000) {  // below the smallest normal one: the sum's unit is that of subnormal numbers
    const uint32_t sum = to_bits(from_bits(magnitude) + 0.5F);
    return static_cast<uint16_t>(sign | (sum - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

inline void store_slot(const float* values, int64_t width, float* out) {
  std::memcpy(out, values, static_cast<size_t>(width) * sizeof *out);
}

inline void store_slot(const float* values, int64_t width, Half* out) {
  for (int64_t i = 0; i < width; i += 8) {
    float kept[8];
    for (int lane = 0; lane < 8; ++lane) {
      const float value = values[i + lane];
      kept[lane] = value > kLargestHalf ? kLargestHalf : value < -kLargestHalf ? -kLargestHalf : value;
    }
#if defined(__F16C__)
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(kept), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), halves);
#else
    for (int lane = 0; lane < 8; ++lane) out[i + lane].bits = float_to_half(kept[lane]);
#endif
  }
}

inline void store_slot(const float* values, int64_t width, int8_t* out) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < width; ++i) largest = std::max(largest, to_bits(values[i]) & 0x7fffffff);
  const int k = scale_of(from_bits(largest));
  out[width] = static_cast<int8_t>(k);
  const float inverse = k == kNoScale ? 0.0F : quarter_power(-k);
  for (int64_t i = 0; i < width; ++i) {
    const float code = k == kNoScale ? 0.0F : round_even(values[i] * inverse);
    out[i] = static_cast<int8_t>(std::min(127.0F, std::max(-127.0F, code)));
  }
}

// The scale of a slot in int8, behind its codes.
inline float slot_scale(int8_t k) { return k == kNoScale ? from_bits(0x7fc00000) : quarter_power(k); }

}  // namespace
}  // namespace edgeblt

#endif
