// Dense products with AVX2: bytes multiplied into 16-bit pairs, added up within a block, then scaled into floats.
#include "avx2.h"

namespace edgeblt {
namespace {

constexpr int chunk_columns(int bits) { return bits == 4 ? 64 : 32; }  // of 32 bytes

// Products of 32 bytes of codes with each row of inputs, added to `sums`: pairs as 16 bits where codes have 4 bits
// (at most 15 * 127 * 2, so that eight fit), fours as 32 bits where they have 8.
template <int kBits, int kRows>
inline void add_chunk(__m256i codes, const int8_t* inputs, int64_t columns, __m256i* sums) {
  if constexpr (kBits == 4) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i even = _mm256_and_si256(codes, low);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const int8_t* in = inputs + m * columns;
      const __m256i both = _mm256_add_epi16(
          _mm256_maddubs_epi16(even, load(in)), _mm256_maddubs_epi16(odd, load(in + 32)));
      sums[m] = _mm256_add_epi16(sums[m], both);
      keep(sums[m]);
    }
  } else {
    // |weight| * (input with the weight's sign): 128 * 127 * 2 still fits 16 bits.
    const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    const __m256i magnitudes = _mm256_abs_epi8(weights), ones = _mm256_set1_epi16(1);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(load(inputs + m * columns), weights));
      sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(pairs, ones));
      keep(sums[m]);
    }
  }
}

template <int kBits>
inline __m256 to_floats(__m256i sums) {
  if constexpr (kBits == 4) sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
  return _mm256_cvtepi32_ps(sums);
}

template <int kBits, int kBlock, int kRows>
inline __attribute__((always_inline)) void add_block(
    const uint8_t* codes, const int8_t* inputs, int64_t columns, const float* scales, int64_t stride, __m256* totals) {
  constexpr int kColumns = chunk_columns(kBits);
  constexpr int kChunks = kBlock > kColumns ? kBlock / kColumns : 1;  // of a block
  constexpr int kBlocks = kBlock < kColumns ? kColumns / kBlock : 1;  // of a chunk
  __m256i sums[kRows];
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) sums[m] = _mm256_setzero_si256();
  EDGEBLT_UNROLL for (int chunk = 0; chunk < kChunks; ++chunk) {
    add_chunk<kBits, kRows>(load(codes + 32 * chunk), inputs + kColumns * chunk, columns, sums);
  }
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    totals[m] = _mm256_fmadd_ps(to_floats<kBits>(sums[m]), lane_scales<kBlocks>(scales + m * stride), totals[m]);
  }
}

// `totals` plus one row of weights times kRows rows of inputs.
template <int kBits, int kBlock, int kRows>
inline __attribute__((always_inline)) void multiply_row(
    const uint8_t* codes, int64_t blocks, const int8_t* inputs, int64_t columns, const float* scales, int64_t stride,
    __m256* totals) {
  constexpr int kColumns = chunk_columns(kBits);
  constexpr int kStep = kBlock > kColumns ? kBlock : kColumns;
  constexpr int kBlocks = kStep / kBlock;
  for (int64_t left = blocks / kBlocks; left; --left) {
    prefetch<kRows, kStep * kBits / 8>(codes);
    add_block<kBits, kBlock, kRows>(codes, inputs, columns, scales, stride, totals);
    codes += kStep * kBits / 8;
    inputs += kStep;
    scales += kBlocks;
  }
  if constexpr (kBlocks > 1) {
    if (const int64_t rest = blocks % kBlocks) {  // less than a vector; scales beyond the blocks are 0
      alignas(32) uint8_t padded[32] = {};
      std::memcpy(padded, codes, static_cast<size_t>(rest * kBlock * kBits / 8));
      add_block<kBits, kBlock, kRows>(padded, inputs, columns, scales, stride, totals);
    }
  }
}

// A row's scales times those of kRows rows of inputs, in `products`; `totals` becomes what the zero points take off.
template <bool kOffsets, bool kHalf, int kRows>
inline __attribute__((always_inline)) void start_row(
    const void* scales, const float* input_scales, const float* offsets, int64_t stride, int64_t blocks,
    float* products, __m256* totals) {
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[m] = _mm256_setzero_ps();
  for (int64_t block = 0; block < blocks; block += 8) {
    const __m256 row = eight_scales<kHalf>(scales, block);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const __m256 both = _mm256_mul_ps(row, _mm256_loadu_ps(input_scales + m * stride + block));
      _mm256_storeu_ps(products + m * stride + block, both);
      if constexpr (kOffsets) {
        totals[m] = _mm256_fnmadd_ps(both, _mm256_loadu_ps(offsets + m * stride + block), totals[m]);
      }
    }
  }
}

// What the products of one call have in common. The two functions that take it are not inlined: in one large function
// the compiler keeps their pointers in memory.
struct Product {
  int64_t blocks, columns, stride;
  float* products;  // [4, stride]
};

// The next four rows of inputs times one row of weights, to out[0], out[rows], ..
template <int kBits, int kBlock, bool kOffsets>
__attribute__((noinline)) void four_inputs(
    const Product& product, const uint8_t* codes, const float* scales, const int8_t* inputs, const float* input_scales,
    const float* offsets, float* out, int64_t rows) {
  const int64_t blocks = product.blocks, stride = product.stride;
  __m256 totals[4];
  start_row<kOffsets, false, 4>(scales, input_scales, offsets, stride, blocks, product.products, totals);
  multiply_row<kBits, kBlock, 4>(codes, blocks, inputs, product.columns, product.products, stride, totals);
  store_column(four_lane_sums(totals), out, rows);
}

// One row of inputs times `count` rows of weights, to out[0], out[1], .. `scales`: halves [count, blocks] where kHalf,
// else floats [count, stride].
template <int kBits, int kBlock, bool kOffsets, bool kHalf>
__attribute__((noinline)) void one_input(
    const Product& product, const uint8_t* codes, const void* scales, int64_t count, const int8_t* inputs,
    const float* input_scales, const float* offsets, float* out) {
  const int64_t blocks = product.blocks, stride = product.stride;
  float* products = product.products;
  const int64_t bytes = blocks * (kBlock * kBits / 8), scale_bytes = kHalf ? blocks * 2 : stride * 4;
  const auto* row_scales = static_cast<const uint8_t*>(scales);
  __m256 totals[4];
  EDGEBLT_UNROLL for (int row = 0; row < 4; ++row) totals[row] = _mm256_setzero_ps();
  for (; count > 0; count -= 4, out += 4) {
    const int64_t group = count < 4 ? count : 4;
    for (int64_t row = 0; row < group; ++row) {
      __m256 total;
      start_row<kOffsets, kHalf, 1>(row_scales, input_scales, offsets, stride, blocks, products, &total);
      multiply_row<kBits, kBlock, 1>(codes, blocks, inputs, 0, products, stride, &total);
      totals[row] = total;
      codes += bytes;
      row_scales += scale_bytes;
    }
    store_some(four_lane_sums(totals), group, out);
  }
}

// For rows [m, last) of inputs: their blocks' sums times the zero points of weight row `row`, less what codes lack.
__attribute__((noinline)) void find_offsets(
    const DenseWeights& weights, const Inputs& inputs, int64_t row, int64_t m, int64_t last, float* points,
    float* offsets) {
  block_zero_points(weights, row, weights.bits == 8 ? 128 : 0, points);
  for (; m < last; ++m) {
    for (int64_t block = 0; block < weights.blocks; block += 8) {
      const __m256 sums = _mm256_loadu_ps(inputs.sums + m * inputs.stride + block);
      _mm256_storeu_ps(
          offsets + m * inputs.stride + block, _mm256_mul_ps(_mm256_loadu_ps(points + block), sums));
    }
  }
}

template <int kBits, int kBlock, bool kOffsets>
void dense(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t stride = inputs.stride, rows = weights.rows, bytes = weights.blocks * kBlock * kBits / 8;
  float* scales = block_buffer<0>(4 * stride);
  float* points = block_buffer<1>(stride);
  float* offsets = block_buffer<2>(inputs.rows * stride);
  const Product product{weights.blocks, inputs.columns, stride, block_buffer<3>(4 * stride)};
  const bool own_points = weights.zero_points != nullptr;  // of each row: rows go one by one
  if (kOffsets && !own_points) find_offsets(weights, inputs, 0, 0, inputs.rows, points, offsets);
  if (inputs.rows == 1 && !own_points && plain_halves(weights.scales)) {
    const auto* halves = static_cast<const uint16_t*>(weights.scales.values) + first * weights.blocks;
    return one_input<kBits, kBlock, kOffsets, true>(
        product, weights.codes + first * bytes, halves, last - first, inputs.codes, inputs.scales, offsets,
        out + first);
  }
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    const int64_t fours = begin + (end - begin) / 4 * 4;
    for (int64_t row = first, count; row < last; row += count) {
      count = own_points ? 1 : row + 4 < last ? 4 : last - row;
      if (own_points) find_offsets(weights, inputs, row, begin, end, points, offsets);
      const uint8_t* codes = weights.codes + row * bytes;
      load_scales(weights.scales, row, count, weights.blocks, scales, stride);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t m = begin; m < fours; m += 4) {
          four_inputs<kBits, kBlock, kOffsets>(
              product, codes + i * bytes, scales + i * stride, inputs.codes + m * inputs.columns,
              inputs.scales + m * stride, offsets + m * stride, out + m * rows + row + i, rows);
        }
      }
      for (int64_t m = fours; m < end; ++m) {
        one_input<kBits, kBlock, kOffsets, false>(
            product, codes, scales, count, inputs.codes + m * inputs.columns, inputs.scales + m * stride,
            offsets + m * stride, out + m * rows + row);
      }
    }
  }
}

template <int kBits, bool kOffsets>
void dense_of_block(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return dense<kBits, 16, kOffsets>(weights, inputs, first, last, out);
    case 32: return dense<kBits, 32, kOffsets>(weights, inputs, first, last, out);
    case 64: return dense<kBits, 64, kOffsets>(weights, inputs, first, last, out);
    case 128: return dense<kBits, 128, kOffsets>(weights, inputs, first, last, out);
    default: return dense<kBits, 256, kOffsets>(weights, inputs, first, last, out);
  }
}

}  // namespace

void dense_avx2(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.bits == 4) return dense_of_block<4, true>(weights, inputs, first, last, out);
  if (weights.zero_points) return dense_of_block<8, true>(weights, inputs, first, last, out);
  return dense_of_block<8, false>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
