// What the AVX2 kernels share.
#ifndef EDGEBLT_AVX2_H
#define EDGEBLT_AVX2_H

#include <immintrin.h>

#include "common.h"

#define EDGEBLT_UNROLL _Pragma("GCC unroll 16")

namespace edgeblt {

void dense_avx2(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void dense_avxvnni(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void sparse_avx2(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void masked_avx2(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void attend_avx2(const Attention& call, int64_t kv_head, int64_t first, int64_t last);
void store_row_avx2(
    const Attention& call, const float* projected, const float* cosines, const float* sines, int64_t row);
void entropies_avx2(const float* logits, int64_t rows, int64_t width, float* out);
void normalize_avx2(
    const float* values, const float* addend, const float* weight, int64_t width, float epsilon, float* total,
    float* out);
void gate_avx2(const float* gate, const float* up, int64_t width, float* out);
void attend_latent_avx2(
    const LatentAttention& call, const float* queries, const float* row, int64_t bytes, float* out);
void attend_bytes_avx2(
    const LatentAttention& call, const float* queries, const float* rows, int64_t count, float* out);
void add_table_row_avx2(const Table& table, int64_t row, float* out);

namespace {

inline __m256i load(const void* bytes) { return _mm256_loadu_si256(static_cast<const __m256i*>(bytes)); }

// Where a row of inputs is by itself, asks for the weights needed a page from here: the processor's own prefetching
// ends with each page of memory, and several rows compute long enough to hide that. `next` need not be readable there.
template <int kRows, int kBytes>
inline __attribute__((always_inline)) void prefetch(const uint8_t* next) {
  constexpr uintptr_t kAhead = 4096;
  if constexpr (kRows == 1) {
    EDGEBLT_UNROLL for (uintptr_t byte = 0; byte < kBytes; byte += 64) {
      const uintptr_t place = reinterpret_cast<uintptr_t>(next) + kAhead + byte;
      _mm_prefetch(reinterpret_cast<const char*>(place), _MM_HINT_T0);
    }
  }
}

// Has the compiler compute `value` here. GCC 12 otherwise puts off a sum until its last term, and runs out of
// registers.
inline void keep(__m256i& value) { __asm__("" : "+x"(value)); }

// The sum of all lanes, always in the same order.
inline float lane_sum(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// `block_scales` of `count` rows, to out[0], out[stride], ..
[[maybe_unused]] __attribute__((noinline)) void load_scales(
    const Scales& scales, int64_t row, int64_t count, int64_t blocks, float* out, int64_t stride) {
  if (!scales.half || scales.blocks_per_scale != 1) {
    for (int64_t i = 0; i < count; ++i) block_scales(scales, row + i, blocks, out + i * stride);
    return;
  }
  const uint16_t* in = static_cast<const uint16_t*>(scales.values) + row * blocks;
  const int64_t whole = blocks / 8 * 8, rest = blocks - whole;
  for (; count; --count) {
    for (int64_t block = 0; block < whole; block += 8) {
      _mm256_storeu_ps(out + block, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + block))));
    }
    if (rest) {
      alignas(16) uint16_t last[8] = {};
      std::memcpy(last, in + whole, static_cast<size_t>(rest) * sizeof *last);
      _mm256_storeu_ps(out + whole, _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(last))));
    }
    in += blocks;
    out += stride;
  }
}

// Eight scales: halves, or floats.
template <bool kHalf>
inline __m256 eight_scales(const void* scales, int64_t index) {
  if constexpr (!kHalf) return _mm256_loadu_ps(static_cast<const float*>(scales) + index);
  const uint16_t* halves = static_cast<const uint16_t*>(scales) + index;
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}

// For `kBlocks` blocks in eight lanes: each lane its block's scale.
template <int kBlocks>
inline __m256 lane_scales(const float* scales) {
  if constexpr (kBlocks == 1) return _mm256_broadcast_ss(scales);
  if constexpr (kBlocks == 2) {
    double two;
    std::memcpy(&two, scales, sizeof two);
    const __m256 lanes = _mm256_castpd_ps(_mm256_set1_pd(two));
    return _mm256_permutevar8x32_ps(lanes, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
  }
  const __m256 four = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(scales));
  return _mm256_permutevar8x32_ps(four, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
}

// Writes the first `count` of four.
inline void store_some(__m128 values, int64_t count, float* out) {
  if (count == 4) return _mm_storeu_ps(out, values);
  for (int64_t i = 0; i < count; ++i) {
    out[i] = _mm_cvtss_f32(values);
    values = _mm_castsi128_ps(_mm_srli_si128(_mm_castps_si128(values), 4));
  }
}

}  // namespace
}  // namespace edgeblt

#endif
