// Masked products with AVX-512 VBMI2: one load spreads stored values to the places of a 64-bit mask.
#include "avx512.h"

namespace edgeblt {
namespace {

template <int kBlock, int kRows>
__attribute__((noinline)) void multiply(
    const MaskedWeights& weights, const Inputs& inputs, int64_t row, int64_t m, const int8_t* values,
    const float* scales, float* products, float* out) {
  constexpr int kBlocks = kBlock < 64 ? 64 / kBlock : 1, kChunks = kBlock > 64 ? kBlock / 64 : 1;
  const int64_t stride = inputs.stride, bytes = mask_bytes(weights.columns);
  multiply_scales<kRows>(scales, inputs.scales + m * stride, stride, weights.blocks, products);
  const uint8_t* mask = weights.mask + row * bytes;
  const int8_t* codes = inputs.codes + m * inputs.columns;
  const float* next = products;
  __m512 totals[kRows];
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) totals[i] = _mm512_setzero_ps();
  for (int64_t byte = 0; byte < bytes; next += kBlocks) {
    __m512i sums[kRows];
    EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) sums[i] = _mm512_setzero_si512();
    for (int chunk = 0; chunk < kChunks && byte < bytes; ++chunk, byte += 8, codes += 64) {
      uint64_t bits = 0;
      std::memcpy(&bits, mask + byte, bytes - byte < 8 ? 4 : 8);
      const __m512i found = _mm512_maskz_expandloadu_epi8(bits, values), magnitudes = _mm512_abs_epi8(found);
      const __mmask64 negative = _mm512_movepi8_mask(found);
      values += __builtin_popcountll(bits);
      EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
        sums[i] = signed_dots(sums[i], magnitudes, negative, load(codes + i * inputs.columns));
      }
    }
    EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
      totals[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[i]), lane_scales<kBlocks>(next + i * stride), totals[i]);
    }
  }
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) out[(m + i) * weights.rows + row] = lane_sum(totals[i]);
}

template <int kBlock>
void masked(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  float* scales = block_buffer<0>(inputs.stride);
  float* products = block_buffer<1>(4 * inputs.stride);
  int8_t* wide = reinterpret_cast<int8_t*>(block_buffer<2>((weights.columns + kMaskedPadding) / 4 + kSlack));
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; ++row) {
      block_scales(weights.scales, row, weights.blocks, scales);
      const int8_t* values = row_values(weights, row, wide);
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) multiply<kBlock, 4>(weights, inputs, row, m, values, scales, products, out);
      for (; m < end; ++m) multiply<kBlock, 1>(weights, inputs, row, m, values, scales, products, out);
    }
  }
}

}  // namespace

void masked_avx512(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return masked<16>(weights, inputs, first, last, out);
    case 32: return masked<32>(weights, inputs, first, last, out);
    case 64: return masked<64>(weights, inputs, first, last, out);
    case 128: return masked<128>(weights, inputs, first, last, out);
    default: return masked<256>(weights, inputs, first, last, out);
  }
}

}  // namespace edgeblt
