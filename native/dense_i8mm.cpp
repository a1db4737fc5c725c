// Dense products with NEON's matrix products (ARMv8.6, i8mm): two rows of weights by two rows of inputs, eight columns,
// in an instruction. A single row of inputs is the dot products' (dense_neon.cpp).
#include "dense_neon.h"

namespace edgeblt {
namespace {

template <int kRows>
struct MatrixDots {
  static constexpr int kPairs = (kRows + 1) / 2;  // of rows of inputs; the last may be one row twice
  int32x4_t sums[kPairs][2 * kQuarters] = {};     // two rows of weights, each with both rows of inputs

  void add(const int8x16_t (&vectors)[kFours][kQuarters], const int8_t* in) {
    for (int i = 0; i < kFours; i += 2, in += 8 * kRows) {
      for (int pair = 0; pair < kPairs; ++pair) {
        const int8x16_t inputs = eight_columns(in, 2 * pair, 2 * pair + 1 < kRows ? 2 * pair + 1 : 2 * pair);
        for (int quarter = 0; quarter < kQuarters; ++quarter) {
          const int32x4_t low = vreinterpretq_s32_s8(vectors[i][quarter]);
          const int32x4_t high = vreinterpretq_s32_s8(vectors[i + 1][quarter]);
          int32x4_t* sum = sums[pair] + 2 * quarter;
          sum[0] = vmmlaq_s32(sum[0], vreinterpretq_s8_s32(vzip1q_s32(low, high)), inputs);
          sum[1] = vmmlaq_s32(sum[1], vreinterpretq_s8_s32(vzip2q_s32(low, high)), inputs);
        }
      }
    }
  }

  int32x4_t sum(int m, int quarter) const {
    const int32x4_t* sum = sums[m / 2] + 2 * quarter;
    return m % 2 ? vuzp2q_s32(sum[0], sum[1]) : vuzp1q_s32(sum[0], sum[1]);
  }

 private:
  // Eight columns of two rows of a tile.
  static int8x16_t eight_columns(const int8_t* in, int first, int second) {
    int32_t fours[4];
    std::memcpy(fours, in + 4 * first, 4);
    std::memcpy(fours + 1, in + 4 * (kRows + first), 4);
    std::memcpy(fours + 2, in + 4 * second, 4);
    std::memcpy(fours + 3, in + 4 * (kRows + second), 4);
    return vreinterpretq_s8_s32(vld1q_s32(fours));
  }
};

}  // namespace

void dense_i8mm(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (inputs.rows == 1) return dense_neon(weights, inputs, first, last, out);
  dense<MatrixDots>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
