// Dense products in vectors of 128 bits: a vector holds four columns of four rows, four of them a group of sixteen.
// A level gives the arithmetic for kRows rows of inputs, `Dots<kRows>`, with
//   add(codes, inputs)  adds the products of a step's codes, which are signed
//   sum(m, quarter)     the sums of four rows of weights with row `m` of inputs
// In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_DENSE_NEON_H
#define EDGEBLT_DENSE_NEON_H

#include "dense.h"
#include "neon.h"

namespace edgeblt {
namespace {

constexpr int kFours = 4;     // of columns in a step, which is the least size of a block
constexpr int kQuarters = 4;  // of a group

// The codes of a step, made signed.
template <int kBits>
inline void load_step(const uint8_t* codes, int8x16_t (&vectors)[kFours][kQuarters]) {
  const int8x16_t eight = vdupq_n_s8(8);
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    if constexpr (kBits == 8) {
      for (int i = 0; i < kFours; ++i) {
        vectors[i][quarter] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + 64 * i + 16 * quarter), vdupq_n_u8(128)));
      }
    } else {
      for (int i = 0; i < kFours; i += 2) {
        const uint8x16_t both = vld1q_u8(codes + 32 * i + 16 * quarter);
        vectors[i][quarter] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), eight);
        vectors[i + 1][quarter] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), eight);
      }
    }
  }
}

// What is taken off a block's sums, for each input: the zero points of four rows less the middle of the codes.
inline int32x4_t centered_points(const DenseWeights& weights, int64_t group, int64_t block, int quarter) {
  int32_t points[4];
  for (int row = 0; row < 4; ++row) {
    points[row] = zero_point(weights, group, block, 4 * quarter + row) - (1 << (weights.bits - 1));
  }
  return vld1q_s32(points);
}

inline float32x4_t load_scales(const Scales& scales, int64_t index) {
  if (!scales.half) return vld1q_f32(static_cast<const float*>(scales.values) + index);
  const uint16_t* halves = static_cast<const uint16_t*>(scales.values) + index;
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
}

template <template <int> typename Dots, int kBits, int kRows>
void multiply(const DenseWeights& weights, const InputTile& tile, int64_t first, int64_t last, float* out) {
  constexpr int64_t kStep = 4 * kFours, kStepBytes = kStep * kGroup * kBits / 8;
  const uint8_t* codes = weights.codes + first * weights.blocks * weights.block_bytes();
  for (int64_t group = first; group < last; ++group) {
    const int8_t* in = tile.codes;
    ScaleCursor cursor(weights, group);
    float32x4_t totals[kRows][kQuarters];
    for (auto& row : totals) {
      for (float32x4_t& quarter : row) quarter = vdupq_n_f32(0);
    }
    for (int64_t block = 0; block < weights.blocks; ++block, cursor.next_block()) {
      Dots<kRows> dots;
      for (int64_t column = 0; column < weights.block_size; column += kStep, codes += kStepBytes, in += kStep * kRows) {
        int8x16_t vectors[kFours][kQuarters];
        load_step<kBits>(codes, vectors);
        prefetch<kStepBytes>(codes);
        dots.add(vectors, in);
      }
      for (int quarter = 0; quarter < kQuarters; ++quarter) {
        const float32x4_t scales = load_scales(weights.scales, cursor.index() + 4 * quarter);
        const int32x4_t points =
            weights.zero_points ? centered_points(weights, group, block, quarter) : vdupq_n_s32(0);
        for (int m = 0; m < kRows; ++m) {
          const int32x4_t sum = vmlsq_n_s32(dots.sum(m, quarter), points, tile.sums[block * kRows + m]);
          const float32x4_t scale = vmulq_n_f32(scales, tile.scales[block * kRows + m]);
          totals[m][quarter] = vfmaq_f32(totals[m][quarter], vcvtq_f32_s32(sum), scale);
        }
      }
    }
    for (int m = 0; m < kRows; ++m) {
      float all[kGroup];
      for (int quarter = 0; quarter < kQuarters; ++quarter) vst1q_f32(all + 4 * quarter, totals[m][quarter]);
      const auto bytes = static_cast<size_t>(rows_of_group(weights, group)) * sizeof *all;
      std::memcpy(out + m * weights.rows + group * kGroup, all, bytes);
    }
  }
}

template <template <int> typename Dots>
inline void dense(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  static constexpr MultiplyGroups kEight[] = {
      multiply<Dots, 8, 1>, multiply<Dots, 8, 2>, multiply<Dots, 8, 3>, multiply<Dots, 8, 4>};
  static constexpr MultiplyGroups kFour[] = {
      multiply<Dots, 4, 1>, multiply<Dots, 4, 2>, multiply<Dots, 4, 3>, multiply<Dots, 4, 4>};
  walk_groups(weights.bits == 8 ? kEight : kFour, weights, inputs, first, last, out);
}

}  // namespace
}  // namespace edgeblt

#endif
