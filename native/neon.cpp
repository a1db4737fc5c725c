// All products with NEON and its dot products of signed bytes (ARMv8.2). Sixteen bytes at a time, kept simple.
#include <arm_neon.h>

#include <type_traits>

#include "attention.h"
#include "common.h"
#include "rows.h"
#include "spread.h"

namespace edgeblt {
namespace {

constexpr int kRowsAtOnce = 4;  // of inputs
#define EDGEBLT_UNROLL _Pragma("GCC unroll 4")

inline int8x16_t load(const void* bytes) { return vld1q_s8(static_cast<const int8_t*>(bytes)); }

// Adds the sums of `kBlocks` blocks, times their scales, to `totals`; sums start anew.
template <int kRows>
inline void flush(int32x4_t* sums, const float32x4_t* scales, float32x4_t* totals) {
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    totals[m] = vfmaq_f32(totals[m], vcvtq_f32_s32(sums[m]), scales[m]);
    sums[m] = vdupq_n_s32(0);
  }
}

// 16 bytes of codes: for each row of inputs the dot products of four (8 bits) or eight (4 bits) columns in each lane.
template <int kBits, int kRows>
inline void add_chunk(uint8x16_t codes, const int8_t* inputs, int64_t columns, int32x4_t* sums) {
  if constexpr (kBits == 4) {
    const int8x16_t eight = vdupq_n_s8(8);
    const int8x16_t even = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15))), eight);
    const int8x16_t odd = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(codes, 4)), eight);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      sums[m] = vdotq_s32(sums[m], even, load(inputs + m * columns));
      sums[m] = vdotq_s32(sums[m], odd, load(inputs + m * columns + 16));
    }
  } else {
    const int8x16_t weights = vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128)));
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      sums[m] = vdotq_s32(sums[m], weights, load(inputs + m * columns));
    }
  }
}

template <int kBits, int kRows>
__attribute__((noinline)) void dense_row(
    const DenseWeights& weights, const Inputs& inputs, int64_t row, int64_t m, const float* scales, const float* points,
    float* out) {
  constexpr int kColumns = kBits == 4 ? 32 : 16;  // of 16 bytes
  const int64_t block_size = weights.block_size, row_bytes = weights.blocks * block_size * kBits / 8;
  const uint8_t* codes = weights.codes + row * row_bytes;
  const int8_t* in = inputs.codes + m * inputs.columns;
  const float* input_scales = inputs.scales + m * inputs.stride;
  float32x4_t totals[kRows], both[kRows];
  int32x4_t sums[kRows];
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    totals[i] = vdupq_n_f32(0);
    sums[i] = vdupq_n_s32(0);
    const float* input_sums = inputs.sums + (m + i) * inputs.stride;
    float offset = 0;
    for (int64_t block = 0; points && block < weights.blocks; ++block) {
      offset -= scales[block] * input_scales[i * inputs.stride + block] * points[block] * input_sums[block];
    }
    totals[i] = vsetq_lane_f32(offset, totals[i], 0);
  }
  for (int64_t begin = 0; begin < row_bytes; begin += 16, in += kColumns) {
    const int64_t block = begin * 8 / kBits / block_size;
    if (row_bytes - begin < 16) {  // one block of 16 columns with 4 bits
      add_chunk<kBits, kRows>(vcombine_u8(vld1_u8(codes + begin), vdup_n_u8(0x88)), in, inputs.columns, sums);
    } else {
      add_chunk<kBits, kRows>(vld1q_u8(codes + begin), in, inputs.columns, sums);
    }
    const int64_t end = (begin + 16) * 8 / kBits;
    if (kBits == 4 && block_size == 16) {  // two blocks
      EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
        const float* next = input_scales + i * inputs.stride + block;
        both[i] = vcombine_f32(vdup_n_f32(scales[block] * next[0]), vdup_n_f32(scales[block + 1] * next[1]));
      }
    } else if (end % block_size == 0) {
      EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
        both[i] = vdupq_n_f32(scales[block] * input_scales[i * inputs.stride + block]);
      }
    } else {
      continue;
    }
    flush<kRows>(sums, both, totals);
  }
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) out[(m + i) * weights.rows + row] = vaddvq_f32(totals[i]);
}

// Calls `function(count, m)` for rows of inputs, four at a time and then one by one.
template <typename Function>
inline void by_four(int64_t begin, int64_t end, Function function) {
  for (; begin + kRowsAtOnce <= end; begin += kRowsAtOnce) function(std::true_type{}, begin);
  for (; begin < end; ++begin) function(std::false_type{}, begin);
}

template <int kBits>
void dense_of_bits(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  float* scales = block_buffer<0>(inputs.stride);
  float* points = block_buffer<1>(inputs.stride);
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; ++row) {
      block_scales(weights.scales, row, weights.blocks, scales);
      if (weights.zero_points) block_zero_points(weights, row, 1 << (kBits - 1), points);
      const float* used = weights.zero_points ? points : nullptr;
      by_four(begin, end, [&](auto four, int64_t m) {
        dense_row<kBits, decltype(four)::value ? kRowsAtOnce : 1>(weights, inputs, row, m, scales, used, out);
      });
    }
  }
}

void dense(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.bits == 4) return dense_of_bits<4>(weights, inputs, first, last, out);
  return dense_of_bits<8>(weights, inputs, first, last, out);
}

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

void sparse(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.group == 4 && weights.bits == 8) return sparse_of<4, 8>(weights, inputs, first, last, out);
  if (weights.group == 4) return sparse_of<4, 4>(weights, inputs, first, last, out);
  if (weights.bits == 8) return sparse_of<8, 8>(weights, inputs, first, last, out);
  return sparse_of<8, 4>(weights, inputs, first, last, out);
}

// 16 columns: their weights, 0 where the mask has no bit. Moves `values` past them.
inline int8x16_t spread_16(const uint8_t* mask, const int8_t*& values) {
  const uint8x8_t low = vld1_u8(kSpread.places[mask[0]]), high = vld1_u8(kSpread.places[mask[1]]);
  const int low_count = __builtin_popcount(mask[0]);
  const uint8x16_t places = vaddq_u8(vcombine_u8(low, high), vld1q_u8(kSpread.begin[low_count]));
  const int8x16_t found = vqtbl1q_s8(load(values), places);
  values += low_count + __builtin_popcount(mask[1]);
  return found;
}

template <int kRows>
__attribute__((noinline)) void masked_row(
    const MaskedWeights& weights, const Inputs& inputs, int64_t row, int64_t m, const int8_t* values,
    const float* scales, float* out) {
  const int64_t bytes = mask_bytes(weights.columns);
  const uint8_t* mask = weights.mask + row * bytes;
  const int8_t* in = inputs.codes + m * inputs.columns;
  float32x4_t totals[kRows], lanes[kRows];
  int32x4_t sums[kRows];
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    totals[i] = vdupq_n_f32(0);
    sums[i] = vdupq_n_s32(0);
  }
  for (int64_t byte = 0; byte < bytes; byte += 2, in += 16) {
    const int8x16_t found = spread_16(mask + byte, values);
    EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
      sums[i] = vdotq_s32(sums[i], found, load(in + i * inputs.columns));
    }
    const int64_t end = (byte + 2) * 8, block = (end - 16) / weights.block_size;
    if (end % weights.block_size && byte + 2 < bytes) continue;
    EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
      const float input = block < weights.blocks ? inputs.scales[(m + i) * inputs.stride + block] : 0;
      lanes[i] = vdupq_n_f32(scales[block] * input);
    }
    flush<kRows>(sums, lanes, totals);
  }
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) out[(m + i) * weights.rows + row] = vaddvq_f32(totals[i]);
}

void masked(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  float* scales = block_buffer<0>(inputs.stride);
  int8_t* wide = reinterpret_cast<int8_t*>(block_buffer<1>((weights.columns + kMaskedPadding) / 4 + kSlack));
  std::memset(scales, 0, static_cast<size_t>(inputs.stride) * sizeof *scales);
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; ++row) {
      block_scales(weights.scales, row, weights.blocks, scales);
      const int8_t* values = row_values(weights, row, wide);
      by_four(begin, end, [&](auto four, int64_t m) {
        masked_row<decltype(four)::value ? kRowsAtOnce : 1>(weights, inputs, row, m, values, scales, out);
      });
    }
  }
}

}  // namespace

const Kernels kNeonKernels = {32, quantize_row, dense, sparse, masked, entropy_rows, attend_rows<4>, store_row,
                              normalize_row, gate_row, attend_vectors};

}  // namespace edgeblt
