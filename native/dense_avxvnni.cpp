// Dense products with AVX-VNNI: dot products of unsigned codes with signed inputs in one instruction, nothing saturates.
#include "dense_ymm.h"

namespace edgeblt {
namespace {

struct VnniDots {
  static constexpr size_t kMostRows = 6;
  template <int kBits>
  static constexpr int kCenter = 0;

  template <int kBits, int kRows>
  static inline __attribute__((always_inline)) void add(
      const __m256i (&vectors)[kHalves][kFours], const int8_t* in, __m256i (&sums)[kHalves][kRows]) {
    EDGEBLT_UNROLL for (int i = 0; i < kFours; ++i) {
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        const __m256i inputs = four_inputs(in, i * kRows + m);
        EDGEBLT_UNROLL for (int half = 0; half < kHalves; ++half) {
          sums[half][m] = _mm256_dpbusd_avx_epi32(sums[half][m], vectors[half][i], inputs);
        }
      }
    }
  }
};

}  // namespace

void dense_avxvnni(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  dense<VnniDots>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
