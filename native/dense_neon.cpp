// Dense products with NEON: four dot products of signed bytes in an instruction.
#include "dense_neon.h"

namespace edgeblt {
namespace {

template <int kRows>
struct ByteDots {
  int32x4_t sums[kRows][kQuarters] = {};

  void add(const int8x16_t (&vectors)[kFours][kQuarters], const int8_t* in) {
    for (int i = 0; i < kFours; ++i) {
      for (int m = 0; m < kRows; ++m, in += 4) {
        int32_t four;
        std::memcpy(&four, in, sizeof four);
        const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
        for (int quarter = 0; quarter < kQuarters; ++quarter) {
          sums[m][quarter] = vdotq_s32(sums[m][quarter], vectors[i][quarter], inputs);
        }
      }
    }
  }

  int32x4_t sum(int m, int quarter) const { return sums[m][quarter]; }
};

}  // namespace

void dense_neon(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  dense<ByteDots>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
