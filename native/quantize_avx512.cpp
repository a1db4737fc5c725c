// Rounding of inputs to int8 with AVX-512: largest magnitudes of all blocks first, then steps of sixteen blocks at once,
// then codes.
#include "avx512.h"

#ifdef EDGEBLT_EMULATED  // SIMDe lacks some of these instructions: they are tested where the processor has them
namespace edgeblt {
void quantize_avx512(
    const float* values, int64_t columns, int64_t block_size, int8_t* codes, float* scales, int32_t* sums) {
  quantize_row(values, columns, block_size, codes, scales, sums);
}
}  // namespace edgeblt
#else
namespace edgeblt {
namespace {

constexpr int64_t kLanes = 16;

// The lanes of a vector that has `left` elements.
inline __mmask16 first_lanes(int64_t left) {
  return left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
}

inline __m256i halves_max(__m512i lanes) {
  return _mm256_max_epu32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
}

inline __m256i halves_sum(__m512i lanes) {
  return _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
}

inline int32_t lane_max(__m512i lanes) {
  const __m256i half = halves_max(lanes);
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1)));
}

inline int32_t lane_sum(__m512i lanes) {
  const __m256i half = halves_sum(lanes);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

// The largest magnitude of `count` values, as bits.
inline int32_t largest_magnitude(const float* values, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(count - i), values + i));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
  }
  return lane_max(largest);
}

// Codes of `count` values, and their sum.
inline int32_t round_block(const float* values, int64_t count, float inverse, int8_t* codes) {
  const __m512 factor = _mm512_set1_ps(inverse);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 lanes = first_lanes(count - i);
    const __m512i steps = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, values + i), factor));
    _mm_mask_storeu_epi8(codes + i, lanes, _mm512_cvtepi32_epi8(steps));
    sum = _mm512_add_epi32(sum, steps);
  }
  return lane_sum(sum);
}

}  // namespace

// `quantize_row` of common.h, to the bit.
void quantize_avx512(
    const float* values, int64_t columns, int64_t block_size, int8_t* codes, float* scales, int32_t* sums) {
  const int64_t blocks = (columns + block_size - 1) / block_size;
  const __m512i smallest = _mm512_set1_epi32(7 << 23), infinity = _mm512_set1_epi32(0x7f800000);
  const __m512 steps = _mm512_set1_ps(127.0F);
  for (int64_t first = 0; first < blocks; first += kLanes) {
    const int64_t some = blocks - first < kLanes ? blocks - first : kLanes;
    alignas(64) int32_t largest[kLanes];
    alignas(64) float inverse[kLanes];
    for (int64_t i = 0; i < some; ++i) {
      const int64_t begin = (first + i) * block_size, left = columns - begin;
      largest[i] = largest_magnitude(values + begin, left < block_size ? left : block_size);
    }
    const __mmask16 lanes = first_lanes(some);
    const __m512i bits = _mm512_maskz_load_epi32(lanes, largest);
    const __mmask16 nothing = _mm512_cmplt_epu32_mask(bits, smallest);
    const __mmask16 rounded = static_cast<__mmask16>(_mm512_cmplt_epu32_mask(bits, infinity) & ~nothing & lanes);
    const __m512 magnitudes = _mm512_castsi512_ps(bits);
    _mm512_store_ps(inverse, _mm512_maskz_div_ps(rounded, steps, magnitudes));
    __m512 scale = _mm512_mask_div_ps(_mm512_set1_ps(from_bits(0x7fc00000)), rounded, magnitudes, steps);
    scale = _mm512_maskz_mov_ps(static_cast<__mmask16>(~nothing), scale);
    _mm512_mask_storeu_ps(scales + first, lanes, scale);
    for (int64_t i = 0; i < some; ++i) {
      const int64_t begin = (first + i) * block_size, left = columns - begin;
      const int64_t count = left < block_size ? left : block_size;
      if (rounded >> i & 1) {
        sums[first + i] = round_block(values + begin, count, inverse[i], codes + begin);
      } else {
        std::memset(codes + begin, 0, static_cast<size_t>(count));
        sums[first + i] = 0;
      }
    }
  }
  std::memset(codes + columns, 0, static_cast<size_t>(padded_columns(columns, block_size) - columns));
}

}  // namespace edgeblt
#endif
