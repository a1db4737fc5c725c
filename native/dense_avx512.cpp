// Dense products with AVX-512 VNNI: four products of bytes added up in one instruction, nothing saturates.
#include "avx512.h"

namespace edgeblt {
namespace {

constexpr int chunk_columns(int bits) { return bits == 4 ? 128 : 64; }  // of 64 bytes

template <int kBits, int kRows>
inline void add_chunk(__m512i codes, const int8_t* inputs, int64_t columns, __m512i* sums) {
  if constexpr (kBits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i even = _mm512_and_si512(codes, low), odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      sums[m] = _mm512_dpbusd_epi32(sums[m], even, load(inputs + m * columns));
      sums[m] = _mm512_dpbusd_epi32(sums[m], odd, load(inputs + m * columns + 64));
    }
  } else {
    const __m512i weights = _mm512_xor_si512(codes, _mm512_set1_epi8(-128)), magnitudes = _mm512_abs_epi8(weights);
    const __mmask64 negative = _mm512_movepi8_mask(weights);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      sums[m] = signed_dots(sums[m], magnitudes, negative, load(inputs + m * columns));
    }
  }
}

// `totals` plus one row of weights times kRows rows of inputs.
template <int kBits, int kBlock, int kRows>
inline void multiply_row(
    const uint8_t* codes, int64_t blocks, const int8_t* inputs, int64_t columns, const float* scales, int64_t stride,
    __m512* totals) {
  constexpr int kColumns = chunk_columns(kBits), kStep = kBlock > kColumns ? kBlock : kColumns;
  constexpr int kBlocks = kStep / kBlock;
  for (int64_t left = blocks; left > 0; left -= kBlocks) {
    alignas(64) uint8_t padded[64] = {};
    const uint8_t* chunks = codes;
    if (left < kBlocks) {  // less than a vector; scales beyond the blocks are 0
      std::memcpy(padded, codes, static_cast<size_t>(left * kBlock * kBits / 8));
      chunks = padded;
    }
    __m512i sums[kRows];
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) sums[m] = _mm512_setzero_si512();
    EDGEBLT_UNROLL for (int chunk = 0; chunk < kStep / kColumns; ++chunk) {
      add_chunk<kBits, kRows>(load(chunks + 64 * chunk), inputs + kColumns * chunk, columns, sums);
    }
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m]), lane_scales<kBlocks>(scales + m * stride), totals[m]);
    }
    codes += kStep * kBits / 8;
    inputs += kStep;
    scales += kBlocks;
  }
}

// What zero points take off the products of a row with one row of inputs; `points` are null where codes lack nothing.
inline __m512 minus_offsets(const float* points, const float* sums, const float* products, int64_t blocks) {
  __m256 total = _mm256_setzero_ps();
  for (int64_t block = 0; points && block < blocks; block += 8) {
    const __m256 offset = _mm256_mul_ps(_mm256_loadu_ps(points + block), _mm256_loadu_ps(sums + block));
    total = _mm256_fnmadd_ps(_mm256_loadu_ps(products + block), offset, total);
  }
  return _mm512_maskz_mov_ps(0xff, _mm512_castps256_ps512(total));
}

template <int kBits, int kBlock, int kRows>
__attribute__((noinline)) void multiply(
    const DenseWeights& weights, const Inputs& inputs, int64_t row, int64_t m, const float* scales, const float* points,
    float* products, float* out) {
  const int64_t blocks = weights.blocks, stride = inputs.stride;
  multiply_scales<kRows>(scales, inputs.scales + m * stride, stride, blocks, products);
  __m512 totals[kRows];
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    totals[i] = minus_offsets(points, inputs.sums + (m + i) * stride, products + i * stride, blocks);
  }
  multiply_row<kBits, kBlock, kRows>(
      weights.codes + row * blocks * (kBlock * kBits / 8), blocks, inputs.codes + m * inputs.columns, inputs.columns,
      products, stride, totals);
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) out[(m + i) * weights.rows + row] = lane_sum(totals[i]);
}

template <int kBits, int kBlock>
void dense(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  float* scales = block_buffer<0>(inputs.stride);
  float* points = block_buffer<1>(inputs.stride);
  float* products = block_buffer<2>(4 * inputs.stride);
  const float* used = kBits == 4 || weights.zero_points ? points : nullptr;
  if (used) block_zero_points(weights, 0, kBits == 8 ? 128 : 0, points);
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; ++row) {
      block_scales(weights.scales, row, weights.blocks, scales);
      if (weights.zero_points) block_zero_points(weights, row, kBits == 8 ? 128 : 0, points);
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) multiply<kBits, kBlock, 4>(weights, inputs, row, m, scales, used, products, out);
      for (; m < end; ++m) multiply<kBits, kBlock, 1>(weights, inputs, row, m, scales, used, products, out);
    }
  }
}

template <int kBits>
void dense_of_block(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return dense<kBits, 16>(weights, inputs, first, last, out);
    case 32: return dense<kBits, 32>(weights, inputs, first, last, out);
    case 64: return dense<kBits, 64>(weights, inputs, first, last, out);
    case 128: return dense<kBits, 128>(weights, inputs, first, last, out);
    default: return dense<kBits, 256>(weights, inputs, first, last, out);
  }
}

}  // namespace

void dense_avx512(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.bits == 4) return dense_of_block<4>(weights, inputs, first, last, out);
  return dense_of_block<8>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
