// N:M sparse products with NEON: inputs are gathered by byte shuffles, as with AVX2.
#include "neon.h"

namespace edgeblt {
namespace {

// Of lane `lane` of vector `vector` of a tile: the place of each slot's input, and the weights.
struct Slots {
  uint8x16_t places;
  int8x16_t weights;
};

template <int kGroup, int kBits>
inline Slots read_slots(const uint8_t* tile, int vector, int lane) {
  const uint8_t base4[16] = {0, 0, 4, 4, 0, 0, 4, 4, 8, 8, 12, 12, 8, 8, 12, 12};
  const uint8_t base8[16] = {0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8};
  const int8x16_t shift = vdupq_n_s8(static_cast<int8_t>(-2 * vector));
  uint8x16_t places = vandq_u8(vshlq_u8(vld1q_u8(tile + 16 * lane), shift), vdupq_n_u8(3));
  if (kGroup == 8) {
    const int8x16_t bit = vdupq_n_s8(static_cast<int8_t>(-2 * vector - lane));
    places = vorrq_u8(places, vshlq_n_u8(vandq_u8(vshlq_u8(vld1q_u8(tile + 32), bit), vdupq_n_u8(1)), 2));
  }
  places = vorrq_u8(places, vld1q_u8(kGroup == 8 ? base8 : base4));
  const uint8_t* values = tile + index_bytes(kGroup);
  if (kBits == 8) return {places, load(values + 32 * vector + 16 * lane)};
  uint8x16_t codes = vld1q_u8(values + 32 * (vector / 2) + 16 * lane);
  codes = vector % 2 ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(15));
  return {places, vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8))};
}

template <int kGroup, int kBits, int kRows>
__attribute__((noinline)) void sparse_pair(
    const SparseWeights& weights, const Inputs& inputs, int64_t row, int64_t m, const float* scales, float* out) {
  const int64_t tiles = (weights.columns + kTile - 1) / kTile;
  const uint8_t* bytes = weights.tiles + row / 2 * tiles * tile_bytes(kGroup, kBits);
  const int8_t* in = inputs.codes + m * inputs.columns;
  const bool both = row + 1 < weights.rows;
  float32x4_t totals[kRows], lanes[kRows];
  int32x4_t sums[kRows];
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    totals[i] = vdupq_n_f32(0);
    sums[i] = vdupq_n_s32(0);
  }
  for (int64_t column = 0; column < tiles * kTile; column += 16, in += 16) {
    const int vector = static_cast<int>(column % kTile / 32), lane = static_cast<int>(column / 16 % 2);
    const Slots slots = read_slots<kGroup, kBits>(bytes, vector, lane);
    EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
      sums[i] = vdotq_s32(sums[i], slots.weights, vqtbl1q_s8(load(in + i * inputs.columns), slots.places));
    }
    const int64_t end = column + 16;
    if (end % weights.block_size == 0 || end == tiles * kTile) {
      const int64_t block = column / weights.block_size;
      EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
        const float input = block < weights.blocks ? inputs.scales[(m + i) * inputs.stride + block] : 0;
        const float32x2_t pair = {scales[2 * block] * input, scales[2 * block + 1] * input};
        lanes[i] = vcombine_f32(pair, pair);
      }
      flush<kRows>(sums, lanes, totals);
    }
    if (end % kTile == 0) bytes += tile_bytes(kGroup, kBits);
  }
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    const float32x2_t sum = vadd_f32(vget_low_f32(totals[i]), vget_high_f32(totals[i]));
    float* place = out + (m + i) * weights.rows + row;
    place[0] = vget_lane_f32(sum, 0);
    if (both) place[1] = vget_lane_f32(sum, 1);
  }
}

template <int kGroup, int kBits>
void sparse_of(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t count = 2 * padded_columns(weights.columns, weights.block_size) / weights.block_size + kSlack;
  float* scales = block_buffer<0>(count);
  std::memset(scales, 0, static_cast<size_t>(count) * sizeof *scales);
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; row += 2) {
      block_scales<2>(weights.scales, row / 2, weights.blocks, scales);
      by_four(begin, end, [&](auto four, int64_t m) {
        sparse_pair<kGroup, kBits, decltype(four)::value ? kRowsAtOnce : 1>(weights, inputs, row, m, scales, out);
      });
    }
  }
}

}  // namespace

void sparse_neon(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.group == 4 && weights.bits == 8) return sparse_of<4, 8>(weights, inputs, first, last, out);
  if (weights.group == 4) return sparse_of<4, 4>(weights, inputs, first, last, out);
  if (weights.bits == 8) return sparse_of<8, 8>(weights, inputs, first, last, out);
  return sparse_of<8, 4>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
