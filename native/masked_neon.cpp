// Masked products with NEON: a table puts stored values in their places, sixteen at a time.
#include "neon.h"
#include "spread.h"

namespace edgeblt {
namespace {

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

}  // namespace

void masked_neon(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
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

}  // namespace edgeblt
