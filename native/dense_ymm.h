// Dense products in vectors of 256 bits: a vector holds four columns of eight rows, two of them a group of sixteen.
// A level gives the arithmetic: `Dots`, with
//   kMostRows       rows of inputs that share a vector of weights
//   kCenter<kBits>  what `add` takes off each code before it multiplies
//   add<kBits>      adds the products of a step's codes with kRows rows of inputs to their sums
// In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_DENSE_YMM_H
#define EDGEBLT_DENSE_YMM_H

#include "avx2.h"
#include "dense.h"

namespace edgeblt {
namespace {

constexpr int kFours = 4;  // of columns in a step, which is the least size of a block
constexpr int kHalves = 2;  // of a group

// Four columns of a row of inputs, in every lane.
inline __m256i four_inputs(const int8_t* in, int index) {
  int32_t four;
  std::memcpy(&four, in + 4 * index, sizeof four);
  return _mm256_set1_epi32(four);
}

// The codes of a step: four columns of half a group in a vector.
template <int kBits>
inline __attribute__((always_inline)) void load_step(const uint8_t* codes, __m256i (&vectors)[kHalves][kFours]) {
  EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
    if constexpr (kBits == 8) {
      EDGEBLT_UNROLL for (int i = 0; i < kFours; ++i) vectors[half][i] = load(codes + 64 * i + 32 * half);
    } else {
      const __m256i low = _mm256_set1_epi8(15);
      EDGEBLT_UNROLL for (int i = 0; i < kFours; i += 2) {
        const __m256i both = load(codes + 32 * i + 32 * half);
        vectors[half][i] = _mm256_and_si256(both, low);
        vectors[half][i + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
      }
    }
  }
}

// What a block's sums of inputs are multiplied by: `center` less the zero points, 16 bits in each lane.
template <int kBits>
inline __m256i negative_zero_points(const DenseWeights& weights, int64_t block, int half, int center) {
  if (!weights.zero_points) return _mm256_set1_epi32((center - (1 << (kBits - 1))) & 0xffff);
  int64_t eight;
  std::memcpy(&eight, weights.zero_points + (kBits == 8 ? block * kGroup + 8 * half : block * kGroup / 2), sizeof eight);
  __m128i points = _mm_cvtsi64_si128(eight);
  if constexpr (kBits == 4) {
    points = _mm_and_si128(half ? _mm_srli_epi16(points, 4) : points, _mm_set1_epi8(15));
  }
  const __m256i negative = _mm256_sub_epi32(_mm256_set1_epi32(center), _mm256_cvtepu8_epi32(points));
  return _mm256_and_si256(negative, _mm256_set1_epi32(0xffff));
}

inline __m256 load_scales(const Scales& scales, int64_t index) {
  return scales.half ? eight_scales<true>(scales.values, index) : eight_scales<false>(scales.values, index);
}

inline void store_half(__m256 values, int64_t count, float* out) {
  if (count >= 8) return _mm256_storeu_ps(out, values);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(out, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes), values);
}

template <typename Dots, int kBits, int kRows>
void multiply(const DenseWeights& weights, const InputTile& tile, int64_t first, int64_t last, float* out) {
  constexpr int64_t kStep = 4 * kFours, kStepBytes = kStep * kGroup * kBits / 8;
  const int64_t steps = weights.block_size / kStep;
  const uint8_t* codes = weights.codes + first * weights.blocks * weights.block_bytes();
  for (int64_t group = first; group < last; ++group) {
    const int8_t* in = tile.codes;
    const float* scales = tile.scales;
    const int32_t* input_sums = tile.sums;
    ScaleCursor cursor(weights, group);
    __m256 totals[kHalves][kRows];
    EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[half][m] = _mm256_setzero_ps();
    }
    for (int64_t block = 0; block < weights.blocks; ++block) {
      __m256i sums[kHalves][kRows];
      EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
        const __m256i points = negative_zero_points<kBits>(
            weights, group * weights.blocks + block, half, Dots::template kCenter<kBits>);
        EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
          sums[half][m] = _mm256_madd_epi16(points, _mm256_set1_epi32(input_sums[m]));
        }
      }
      for (int64_t step = 0; step < steps; ++step, codes += kStepBytes, in += kStep * kRows) {
        __m256i vectors[kHalves][kFours];
        load_step<kBits>(codes, vectors);
        prefetch<kStepBytes>(codes);
        Dots::template add<kBits, kRows>(vectors, in, sums);
      }
      EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
        const __m256 block_scales = load_scales(weights.scales, cursor.index() + 8 * half);
        EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
          const __m256 scale = _mm256_mul_ps(block_scales, _mm256_broadcast_ss(scales + m));
          totals[half][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[half][m]), scale, totals[half][m]);
        }
      }
      cursor.next_block();
      scales += kRows;
      input_sums += kRows;
    }
    const int64_t inside = rows_of_group(weights, group);
    float* place = out + group * kGroup;
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      store_half(totals[0][m], inside, place + m * weights.rows);
      if (inside > 8) store_half(totals[1][m], inside - 8, place + m * weights.rows + 8);
    }
  }
}

template <typename Dots, int kBits, size_t... kRows>
inline void dense_of_bits(
    const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out,
    std::index_sequence<kRows...>) {
  constexpr MultiplyGroups kernels[] = {multiply<Dots, kBits, static_cast<int>(kRows) + 1>...};
  walk_groups(kernels, weights, inputs, first, last, out);
}

template <typename Dots>
inline void dense(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  constexpr auto kRows = std::make_index_sequence<Dots::kMostRows>();
  if (weights.bits == 4) return dense_of_bits<Dots, 4>(weights, inputs, first, last, out, kRows);
  return dense_of_bits<Dots, 8>(weights, inputs, first, last, out, kRows);
}

}  // namespace
}  // namespace edgeblt

#endif
