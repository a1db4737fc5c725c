// What the dense kernels in vectors of 512 bits share: a vector holds four columns of a group's sixteen rows. In an
// unnamed namespace for common.h's reason.
#ifndef EDGEBLT_DENSE_ZMM_H
#define EDGEBLT_DENSE_ZMM_H

#include "avx512.h"
#include "dense.h"

namespace edgeblt {
namespace {

constexpr int64_t kStep = 16;  // columns, the least size of a block

// The codes of kStep columns of a group, four columns in a vector.
template <int kBits>
inline __attribute__((always_inline)) void load_step(const uint8_t* codes, __m512i* vectors) {
  if constexpr (kBits == 8) {
    EDGEBLT_UNROLL for (int i = 0; i < 4; ++i) vectors[i] = load(codes + 64 * i);
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    EDGEBLT_UNROLL for (int i = 0; i < 2; ++i) {
      const __m512i both = load(codes + 64 * i);
      vectors[2 * i] = _mm512_and_si512(both, low);
      vectors[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
  }
}

// Four columns of a row of inputs, in every lane: one read, which the compiler makes part of the product.
inline __attribute__((always_inline)) __m512i four_inputs(const int8_t* in, int index) {
  int32_t four;
  std::memcpy(&four, in + 4 * index, sizeof four);
  return _mm512_set1_epi32(four);
}

// What a block's sums of inputs are multiplied by: `center`, which was taken off its codes, less their zero points; 16
// bits in each lane.
template <int kBits>
inline __m512i negative_zero_points(const DenseWeights& weights, int64_t block, int center) {
  if (!weights.zero_points) return _mm512_set1_epi32((center - (1 << (kBits - 1))) & 0xffff);
  __m128i points;
  if constexpr (kBits == 8) {
    points = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights.zero_points + block * kGroup));
  } else {
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights.zero_points + block * kGroup / 2));
    points = _mm_and_si128(_mm_unpacklo_epi64(both, _mm_srli_epi16(both, 4)), _mm_set1_epi8(15));
  }
  const __m512i negative = _mm512_sub_epi32(_mm512_set1_epi32(center), _mm512_cvtepu8_epi32(points));
  return _mm512_and_si512(negative, _mm512_set1_epi32(0xffff));
}

inline __m512 load_scales(const Scales& scales, int64_t index) {
  if (!scales.half) return _mm512_loadu_ps(static_cast<const float*>(scales.values) + index);
  const uint16_t* halves = static_cast<const uint16_t*>(scales.values) + index;
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

}  // namespace
}  // namespace edgeblt

#endif
