// Dense products with AVX2. Its products of bytes saturate at 16 bits: codes of 4 bits stay below that for sixteen
// columns, those of 8 bits are multiplied as magnitudes with the inputs taking the sign, at most 128 * 127 * 2.
#include "dense_ymm.h"

namespace edgeblt {
namespace {

struct Avx2Dots {
  static constexpr size_t kMostRows = 4;
  template <int kBits>
  static constexpr int kCenter = kBits == 8 ? 128 : 0;

  template <int kBits, int kRows>
  static inline __attribute__((always_inline)) void add(
      const __m256i (&vectors)[kHalves][kFours], const int8_t* in, __m256i (&sums)[kHalves][kRows]) {
    if constexpr (kBits == 4) return add_fours(vectors, in, sums);
    const __m256i ones = _mm256_set1_epi16(1);
    EDGEBLT_UNROLL for (int i = 0; i < kFours; ++i) {
      EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
        const __m256i weights = _mm256_xor_si256(vectors[half][i], _mm256_set1_epi8(-128));
        const __m256i magnitudes = _mm256_abs_epi8(weights);
        EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
          const __m256i inputs = _mm256_sign_epi8(four_inputs(in, i * kRows + m), weights);
          const __m256i dots = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitudes, inputs), ones);
          sums[half][m] = _mm256_add_epi32(sums[half][m], dots);
          keep(sums[half][m]);
        }
      }
    }
  }

 private:
  template <int kRows>
  static inline __attribute__((always_inline)) void add_fours(
      const __m256i (&vectors)[kHalves][kFours], const int8_t* in, __m256i (&sums)[kHalves][kRows]) {
    EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        __m256i dots = _mm256_maddubs_epi16(vectors[half][0], four_inputs(in, m));
        EDGEBLT_UNROLL for (int i = 1; i < kFours; ++i) {
          dots = _mm256_add_epi16(dots, _mm256_maddubs_epi16(vectors[half][i], four_inputs(in, i * kRows + m)));
        }
        sums[half][m] = _mm256_add_epi32(sums[half][m], _mm256_madd_epi16(dots, _mm256_set1_epi16(1)));
        keep(sums[half][m]);
      }
    }
  }
};

}  // namespace

void dense_avx2(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  dense<Avx2Dots>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
