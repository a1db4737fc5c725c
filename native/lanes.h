// Vectors of float32 of any width for loops that every level compiles for its instructions. In an unnamed namespace for
// the reason given in common.h.
#ifndef EDGEBLT_LANES_H
#define EDGEBLT_LANES_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__FMA__)
#include <immintrin.h>
#endif

#define EDGEBLT_INLINE inline __attribute__((always_inline))

namespace edgeblt {
namespace {

template <int kCount>
using Floats __attribute__((vector_size(kCount * sizeof(float)))) = float;
template <int kCount>
using Ints __attribute__((vector_size(kCount * sizeof(int32_t)))) = int32_t;

template <int kCount>
EDGEBLT_INLINE Floats<kCount> load_floats(const float* values) {
  Floats<kCount> lanes;
  std::memcpy(&lanes, values, sizeof lanes);
  return lanes;
}

template <int kCount>
EDGEBLT_INLINE void store_floats(const Floats<kCount>& lanes, float* out) {
  std::memcpy(out, &lanes, sizeof lanes);
}

template <int kCount>
EDGEBLT_INLINE Floats<kCount> repeat(float value) {
  return value - Floats<kCount>{};  // a sum with zeros would be computed, as it changes -0
}

template <int kCount>
EDGEBLT_INLINE Floats<kCount> larger_of(const Floats<kCount>& one, const Floats<kCount>& other) {
  return one > other ? one : other;
}

// one * other + addend, rounded once where the level's instructions do it so.
template <int kCount>
EDGEBLT_INLINE Floats<kCount> fused(
    const Floats<kCount>& one, const Floats<kCount>& other, const Floats<kCount>& addend) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) return (Floats<16>)_mm512_fmadd_ps((__m512)one, (__m512)other, (__m512)addend);
#endif
#if defined(__FMA__)
  if constexpr (kCount == 8) return (Floats<8>)_mm256_fmadd_ps((__m256)one, (__m256)other, (__m256)addend);
#endif
  return one * other + addend;
}

// Has the compiler compute `lanes` here. GCC 12 otherwise puts off sums until they are used, and runs out of registers.
template <int kCount>
EDGEBLT_INLINE void keep([[maybe_unused]] Floats<kCount>& lanes) {
#if defined(__AVX512F__)
  if constexpr (kCount == 16) __asm__("" : "+v"(lanes));
#endif
#if defined(__AVX2__)
  if constexpr (kCount == 8) __asm__("" : "+x"(lanes));
#endif
}

// e ** x is e ** rest * 2 ** power; gives the former, for -87 <= x <= 0. Cephes' reduction and polynomial.
template <int kCount>
EDGEBLT_INLINE Floats<kCount> reduced_exponential(const Floats<kCount>& argument, Floats<kCount>& power) {
  constexpr float kMagic = 12582912.0F;
  const auto all = [](float value) __attribute__((always_inline)) { return repeat<kCount>(value); };
  power = fused<kCount>(argument, all(1.44269504088896341F), all(kMagic)) - kMagic;
  Floats<kCount> x = fused<kCount>(power, all(-0.693359375F), argument);
  x = fused<kCount>(power, all(2.12194440e-4F), x);
  Floats<kCount> y = fused<kCount>(x, all(1.9875691500e-4F), all(1.3981999507e-3F));
  y = fused<kCount>(y, x, all(8.3334519073e-3F));
  y = fused<kCount>(y, x, all(4.1665795894e-2F));
  y = fused<kCount>(y, x, all(1.6666665459e-1F));
  y = fused<kCount>(y, x, all(5.0000001201e-1F));
  return fused<kCount>(y * x, x, x) + 1.0F;
}

// e ** x for -87 <= x <= 0, error below 2 units in the last place.
template <int kCount>
EDGEBLT_INLINE Floats<kCount> exponential(const Floats<kCount>& argument) {
  Floats<kCount> power;
  const Floats<kCount> y = reduced_exponential<kCount>(argument, power);
  const Ints<kCount> bits = (__builtin_convertvector(power, Ints<kCount>) + 127) << 23;
  return y * (Floats<kCount>)bits;
}

// e ** x for x <= 0; 0 for x below -87, and for x that are not numbers.
template <int kCount>
EDGEBLT_INLINE Floats<kCount> exponential_or_zero(const Floats<kCount>& argument) {
  const Floats<kCount> lowest = repeat<kCount>(-87);
#if defined(__AVX512F__)
  if constexpr (kCount == 16) {
    const __mmask16 counts = _mm512_cmp_ps_mask((__m512)argument, (__m512)lowest, _CMP_GT_OQ);
    Floats<kCount> power;
    const Floats<kCount> y = reduced_exponential<kCount>(argument, power);
    return (Floats<kCount>)_mm512_maskz_scalef_ps(counts, (__m512)y, (__m512)power);
  }
#endif
  const Ints<kCount> counts = argument > lowest;
  const Floats<kCount> power = exponential<kCount>(counts ? argument : lowest);
  return (Floats<kCount>)((Ints<kCount>)power & counts);
}

// EDGEBLT_PICK: lanes of two vectors, those of the second counting from kCount on.
#if defined(__clang__)
#define EDGEBLT_PICK(first, second, ...) __builtin_shufflevector(first, second, __VA_ARGS__)
#else
#define EDGEBLT_PICK(first, second, ...) __builtin_shuffle(first, second, Ints<kCount>{__VA_ARGS__})
#endif

// The sums of lanes kStride apart: in lanes without the bit kStride those of `first`, in the others those of `second`.
template <int kCount, int kStride, size_t... kLane>
EDGEBLT_INLINE Floats<kCount> fold(
    const Floats<kCount>& first, const Floats<kCount>& second, std::index_sequence<kLane...>) {
  constexpr auto from = [](size_t lane, size_t place) {
    return static_cast<int32_t>(lane & kStride ? kCount + place : place);
  };
  return EDGEBLT_PICK(first, second, from(kLane, kLane)...) +
         EDGEBLT_PICK(first, second, from(kLane, kLane ^ kStride)...);
}

// Leaves in vectors[0] the sums of all lanes of each of the first 2 * kStride of kCount vectors, always added up in the
// same order: lanes kCount / 2 apart first, neighbours last.
template <int kCount, int kStride = kCount / 2>
EDGEBLT_INLINE void fold_all(Floats<kCount>* vectors) {
  for (int i = 0; i < kStride; ++i) {
    vectors[i] = fold<kCount, kStride>(vectors[i], vectors[i + kStride], std::make_index_sequence<kCount>());
  }
  if constexpr (kStride > 1) fold_all<kCount, kStride / 2>(vectors);
}

// Lanes kStride apart in each other's place.
template <int kCount, int kStride, size_t... kLane>
EDGEBLT_INLINE Floats<kCount> swapped(const Floats<kCount>& lanes, std::index_sequence<kLane...>) {
  return EDGEBLT_PICK(lanes, lanes, static_cast<int32_t>(kLane ^ kStride)...);
}

// Turns kCount vectors: lane j of vector i and lane i of vector j change places.
template <int kCount, int kStride, size_t... kLane>
EDGEBLT_INLINE void turn_pair(Floats<kCount>& first, Floats<kCount>& second, std::index_sequence<kLane...>) {
  const Floats<kCount> one = EDGEBLT_PICK(
      first, second, static_cast<int32_t>(kLane & kStride ? kCount + (kLane ^ kStride) : kLane)...);
  second = EDGEBLT_PICK(first, second, static_cast<int32_t>(kLane & kStride ? kCount + kLane : kLane ^ kStride)...);
  first = one;
}

template <int kCount, int kStride = kCount / 2>
EDGEBLT_INLINE void turn_all(Floats<kCount>* vectors) {
  for (int i = 0; i < kCount; ++i) {
    if (i & kStride) continue;
    turn_pair<kCount, kStride>(vectors[i], vectors[i + kStride], std::make_index_sequence<kCount>());
  }
  if constexpr (kStride > 1) turn_all<kCount, kStride / 2>(vectors);
}

// The sum of all lanes, always in the order of `fold_all`.
template <int kCount, int kStride = kCount / 2>
EDGEBLT_INLINE float sum_of(const Floats<kCount>& lanes) {
  const Floats<kCount> sums = lanes + swapped<kCount, kStride>(lanes, std::make_index_sequence<kCount>());
  if constexpr (kStride > 1) {
    return sum_of<kCount, kStride / 2>(sums);
  } else {
    return sums[0];
  }
}

template <int kCount, int kStride = kCount / 2>
EDGEBLT_INLINE float largest_of(const Floats<kCount>& lanes) {
  const Floats<kCount> largest =
      larger_of<kCount>(lanes, swapped<kCount, kStride>(lanes, std::make_index_sequence<kCount>()));
  if constexpr (kStride > 1) {
    return largest_of<kCount, kStride / 2>(largest);
  } else {
    return largest[0];
  }
}

}  // namespace
}  // namespace edgeblt

#endif
