// What the AVX-512 kernels share. They need F, BW, VL, DQ, VNNI and VBMI2.
#ifndef EDGEBLT_AVX512_H
#define EDGEBLT_AVX512_H

#ifdef EDGEBLT_EMULATED
#include "tests/emulated_avx512.h"
#else
#include <immintrin.h>
#endif

#include "common.h"

#define EDGEBLT_UNROLL _Pragma("GCC unroll 16")

namespace edgeblt {

void dense_avx512(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
int64_t amx_rows(int64_t rows, int64_t block_size);
void dense_amx(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void sparse_avx512(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void masked_avx512(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);
void attend_avx512(const Attention& call, int64_t kv_head, int64_t first, int64_t last);
void store_row_avx512(
    const Attention& call, const float* projected, const float* cosines, const float* sines, int64_t row);
void entropies_avx512(const float* logits, int64_t rows, int64_t width, float* out);
void normalize_avx512(
    const float* values, const float* addend, const float* weight, int64_t width, float epsilon, float* total,
    float* out);
void gate_avx512(const float* gate, const float* up, int64_t width, float* out);
void attend_latent_avx512(
    const LatentAttention& call, const float* queries, const float* row, int64_t bytes, float* out);
void attend_bytes_avx512(
    const LatentAttention& call, const float* queries, const float* rows, int64_t count, float* out);
void add_table_row_avx512(const Table& table, int64_t row, float* out);

namespace {

inline __m512i load(const void* bytes) { return _mm512_loadu_si512(bytes); }

// Sums of four products of signed bytes each: the instruction takes one factor unsigned, so the sign changes sides.
inline __m512i signed_dots(__m512i sums, __m512i magnitudes, __mmask64 negative, __m512i inputs) {
  return _mm512_dpbusd_epi32(sums, magnitudes, _mm512_mask_sub_epi8(inputs, negative, _mm512_setzero_si512(), inputs));
}

// For `kBlocks` blocks in sixteen lanes: each lane its block's scale. Reads eight floats.
template <int kBlocks>
inline __m512 lane_scales(const float* scales) {
  if constexpr (kBlocks == 1) return _mm512_set1_ps(*scales);
  const __m512 some = _mm512_castps256_ps512(_mm256_loadu_ps(scales));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  constexpr int kShift = kBlocks == 2 ? 3 : kBlocks == 4 ? 2 : 1;
  return _mm512_permutexvar_ps(_mm512_srli_epi32(lanes, kShift), some);
}

inline __m256 halves(__m512 lanes) {
  const __m256d high = _mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1);
  return _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm256_castpd_ps(high));
}

inline __m128 quarters(__m512 lanes) {
  const __m256 half = halves(lanes);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline float lane_sum(__m512 lanes) {
  __m128 sum = quarters(lanes);
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

// A row's scales times those of kRows rows of inputs, in `products` [kRows, stride].
template <int kRows>
inline void multiply_scales(
    const float* scales, const float* input_scales, int64_t stride, int64_t blocks, float* products) {
  for (int m = 0; m < kRows; ++m) {
    for (int64_t block = 0; block < blocks; block += 8) {
      const __m256 input = _mm256_loadu_ps(input_scales + m * stride + block);
      _mm256_storeu_ps(products + m * stride + block, _mm256_mul_ps(_mm256_loadu_ps(scales + block), input));
    }
  }
}

}  // namespace
}  // namespace edgeblt

#endif
