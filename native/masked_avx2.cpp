// Masked products with AVX2: eight stored values at a time are spread to the places of a mask byte's bits, by a byte
// shuffle looked up by the mask byte.
#include "avx2.h"
#include "spread.h"

namespace edgeblt {
namespace {

// 16 columns: their weights, 0 where the mask has no bit. Moves `values` past them.
inline __m128i spread_16(uint32_t mask, const int8_t*& values) {
  const uint32_t low = mask & 0xff, high = mask >> 8 & 0xff;
  const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSpread.places[low]));
  const __m128i places = _mm_castps_si128(
      _mm_loadh_pi(_mm_castsi128_ps(first), reinterpret_cast<const __m64*>(kSpread.places[high])));
  // The upper half goes on where the lower one ends.
  const __m128i begin = _mm_load_si128(reinterpret_cast<const __m128i*>(kSpread.begin[__builtin_popcount(low)]));
  values += __builtin_popcount(mask & 0xffff);
  return _mm_shuffle_epi8(stored, _mm_add_epi8(places, begin));
}

// `totals` plus one row of weights, as `chunks` of 32 columns, times kRows rows of inputs. `scales`: [kRows, stride].
template <int kBlock, int kRows>
inline __attribute__((always_inline)) void multiply_row(
    const uint8_t* mask, const int8_t* values, int64_t chunks, const int8_t* inputs, int64_t columns,
    const float* scales, int64_t stride, __m256* totals) {
  constexpr int kChunks = kBlock > 32 ? kBlock / 32 : 1;
  constexpr int kBlocks = kBlock < 32 ? 32 / kBlock : 1;
  while (chunks > 0) {
    __m256i sums[kRows];
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) sums[m] = _mm256_setzero_si256();
    const int64_t count = chunks < kChunks ? chunks : kChunks;
    for (int64_t chunk = 0; chunk < count; ++chunk) {
      uint32_t bits;
      std::memcpy(&bits, mask, sizeof bits);
      const __m128i low = spread_16(bits, values);
      const __m256i weights = _mm256_set_m128i(spread_16(bits >> 16, values), low);
      const __m256i magnitudes = _mm256_abs_epi8(weights);
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        const __m256i signed_inputs = _mm256_sign_epi8(load(inputs + m * columns), weights);
        const __m256i pairs = _mm256_maddubs_epi16(magnitudes, signed_inputs);
        sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        keep(sums[m]);
      }
      mask += 4;
      inputs += 32;
    }
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const __m256 lanes = lane_scales<kBlocks>(scales + m * stride);
      totals[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[m]), lanes, totals[m]);
    }
    scales += kBlocks;
    chunks -= count;
  }
}

// What the products of one call have in common.
struct Product {
  int64_t blocks, chunks, columns, stride;
  float* products;  // [4, stride]
};

// One row of weights times kRows rows of inputs, to out[0], out[rows], ..
template <int kBlock, int kRows>
__attribute__((noinline)) void multiply(
    const Product& product, const uint8_t* mask, const int8_t* values, const float* scales, const int8_t* inputs,
    const float* input_scales, float* out, int64_t rows) {
  const int64_t stride = product.stride;
  __m256 totals[kRows];
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[m] = _mm256_setzero_ps();
  for (int64_t block = 0; block < product.blocks; block += 8) {
    const __m256 row = _mm256_loadu_ps(scales + block);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const __m256 both = _mm256_mul_ps(row, _mm256_loadu_ps(input_scales + m * stride + block));
      _mm256_storeu_ps(product.products + m * stride + block, both);
    }
  }
  multiply_row<kBlock, kRows>(
      mask, values, product.chunks, inputs, product.columns, product.products, stride, totals);
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) out[m * rows] = lane_sum(totals[m]);
}

template <int kBlock>
void masked(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t rows = weights.rows, bytes = mask_bytes(weights.columns);
  float* scales = block_buffer<0>(weights.blocks + kSlack);
  int8_t* wide = reinterpret_cast<int8_t*>(block_buffer<2>((weights.columns + kMaskedPadding) / 4 + kSlack));
  const Product product{weights.blocks, bytes / 4, inputs.columns, inputs.stride, block_buffer<1>(4 * inputs.stride)};
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; ++row) {
      load_scales(weights.scales, row, 1, weights.blocks, scales, 0);
      const int8_t* values = row_values(weights, row, wide);
      const uint8_t* mask = weights.mask + row * bytes;
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) {
        multiply<kBlock, 4>(product, mask, values, scales, inputs.codes + m * inputs.columns,
                            inputs.scales + m * inputs.stride, out + m * rows + row, rows);
      }
      for (; m < end; ++m) {
        multiply<kBlock, 1>(product, mask, values, scales, inputs.codes + m * inputs.columns,
                            inputs.scales + m * inputs.stride, out + m * rows + row, rows);
      }
    }
  }
}

}  // namespace

void masked_avx2(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return masked<16>(weights, inputs, first, last, out);
    case 32: return masked<32>(weights, inputs, first, last, out);
    case 64: return masked<64>(weights, inputs, first, last, out);
    case 128: return masked<128>(weights, inputs, first, last, out);
    default: return masked<256>(weights, inputs, first, last, out);
  }
}

}  // namespace edgeblt
