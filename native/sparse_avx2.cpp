// N:M sparse products with AVX2. Not the weights are spread out but the inputs gathered: one byte shuffle fetches, for
// 16 stored values in a lane, their inputs out of the 16 that the lane covers. So only values that are not zero cost.
#include "avx2.h"
#include "sparse_forms.h"

#include <algorithm>

namespace edgeblt {
namespace {

// Where in its lane the group of each slot begins.
template <int kGroup>
inline __m256i slot_bases() {
  if constexpr (kGroup == 8) {
    return _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8));
  }
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 8, 8, 12, 12, 8, 8, 12, 12));
}

// The indices and values of a tile.
template <int kGroup, int kBits>
struct Tile {
  __m256i low, high;
  const uint8_t* values;

  explicit Tile(const uint8_t* tile) : low(load(tile)), values(tile + index_bytes(kGroup)) {
    if constexpr (kGroup == 8) {
      const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + 32)));
      high = _mm256_srlv_epi64(both, _mm256_setr_epi64x(0, 0, 1, 1));  // the second lane's bits are the odd ones
    }
  }

  // Of vector `vector`: for each slot the place of its input in the lane.
  template <int kVector>
  __m256i places() const {
    const __m256i two = kVector ? _mm256_srli_epi16(low, 2 * kVector) : low;
    __m256i found = _mm256_or_si256(_mm256_and_si256(two, _mm256_set1_epi8(3)), slot_bases<kGroup>());
    if constexpr (kGroup == 8) {
      __m256i bit = high;
      if constexpr (kVector == 0) bit = _mm256_slli_epi16(high, 2);
      if constexpr (kVector > 1) bit = _mm256_srli_epi16(high, 2 * kVector - 2);
      found = _mm256_or_si256(found, _mm256_and_si256(bit, _mm256_set1_epi8(4)));
    }
    return found;
  }

  template <int kVector>
  __m256i weights() const {
    if constexpr (kBits == 8) return load(values + 32 * kVector);
    __m256i codes = load(values + 32 * (kVector / 2));
    if constexpr (kVector % 2) codes = _mm256_srli_epi16(codes, 4);
    return _mm256_sub_epi8(_mm256_and_si256(codes, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
  }
};

// Scales of a vector's lanes: the two rows in turn; with blocks of 16 each half has its own block.
template <int kBlock>
inline __m256 pair_scales(const float* scales) {
  if constexpr (kBlock == 16) {
    const __m256d four = _mm256_castps_pd(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(scales)));
    return _mm256_castpd_ps(_mm256_permute4x64_pd(four, 0x50));
  }
  double both;
  std::memcpy(&both, scales, sizeof both);
  return _mm256_castpd_ps(_mm256_set1_pd(both));
}

// Adds vector `kVector` of a tile to `sums`: as 16 bits for 4-bit weights (at most 8 * 127 * 2), else as 32.
template <int kGroup, int kBits, int kRows, int kVector>
inline void add_vector(const Tile<kGroup, kBits>& tile, const int8_t* inputs, int64_t columns, __m256i* sums) {
  const __m256i places = tile.template places<kVector>(), weights = tile.template weights<kVector>();
  const __m256i magnitudes = _mm256_abs_epi8(weights);
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    const __m256i gathered = _mm256_shuffle_epi8(load(inputs + m * columns + 32 * kVector), places);
    __m256i dots = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(gathered, weights));
    if constexpr (kBits == 8) {
      sums[m] = _mm256_add_epi32(sums[m], _mm256_madd_epi16(dots, _mm256_set1_epi16(1)));
    } else {
      sums[m] = _mm256_add_epi16(sums[m], dots);
    }
    keep(sums[m]);
  }
}

// Adds the sums of a block, times its scales, to `totals`; sums start anew.
template <int kBits, int kBlock, int kRows>
inline __attribute__((always_inline)) void flush(const float* scales, int64_t stride, __m256i* sums, __m256* totals) {
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    if constexpr (kBits == 4) sums[m] = _mm256_madd_epi16(sums[m], _mm256_set1_epi16(1));
    totals[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[m]), pair_scales<kBlock>(scales + m * stride), totals[m]);
    sums[m] = _mm256_setzero_si256();
  }
}

// `totals` plus a pair of rows times kRows rows of inputs. `scales`: [kRows, stride], of the two rows in turn.
template <int kGroup, int kBits, int kBlock, int kRows>
inline __attribute__((always_inline)) void multiply_pair(
    const uint8_t* bytes, int64_t tiles, const int8_t* inputs, int64_t columns, const float* scales, int64_t stride,
    __m256* totals) {
  __m256i sums[kRows];
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) sums[m] = _mm256_setzero_si256();
  for (int64_t index = 0; index < tiles; ++index) {
    const Tile<kGroup, kBits> tile(bytes);
    prefetch<kRows, tile_bytes(kGroup, kBits)>(bytes);
    // A block ends after each vector of 32 columns, or after the second and fourth, or with a tile.
    add_vector<kGroup, kBits, kRows, 0>(tile, inputs, columns, sums);
    if constexpr (kBlock <= 32) flush<kBits, kBlock, kRows>(scales, stride, sums, totals);
    add_vector<kGroup, kBits, kRows, 1>(tile, inputs, columns, sums);
    if constexpr (kBlock <= 64) flush<kBits, kBlock, kRows>(scales + 32 / kBlock * 2, stride, sums, totals);
    add_vector<kGroup, kBits, kRows, 2>(tile, inputs, columns, sums);
    if constexpr (kBlock <= 32) flush<kBits, kBlock, kRows>(scales + 64 / kBlock * 2, stride, sums, totals);
    add_vector<kGroup, kBits, kRows, 3>(tile, inputs, columns, sums);
    if constexpr (kBlock <= 64) flush<kBits, kBlock, kRows>(scales + 96 / kBlock * 2, stride, sums, totals);
    if constexpr (kBlock <= 64) scales += kTile / kBlock * 2;
    if (kBlock == kTile || (kBlock > kTile && (index % 2 || index + 1 == tiles))) {
      flush<kBits, kBlock, kRows>(scales, stride, sums, totals);
      scales += 2;
    }
    bytes += tile_bytes(kGroup, kBits);
    inputs += kTile;
  }
}

// What the products of one call have in common.
struct Product {
  int64_t scales, tiles, columns;
  int64_t stride;    // floats for a row of inputs: two a block, zeros beyond
  float* products;  // [4, stride]
};

// The scales of a pair's rows times those of kRows rows of inputs, each of these twice, in `product.products`.
template <bool kHalf, int kRows>
inline __attribute__((always_inline)) void multiply_scales(
    const Product& product, const void* scales, const float* input_scales) {
  for (int64_t place = 0; place < product.scales; place += 8) {
    const __m256 pair = eight_scales<kHalf>(scales, place);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const __m256 input = _mm256_loadu_ps(input_scales + m * product.stride + place);
      _mm256_storeu_ps(product.products + m * product.stride + place, _mm256_mul_ps(pair, input));
    }
  }
}

// Sums of the first row's lanes, and of the second's, then two that mean nothing.
inline __m128 pair_sums(__m256 totals) {
  const __m128 sum = _mm_add_ps(_mm256_castps256_ps128(totals), _mm256_extractf128_ps(totals, 1));
  return _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
}

// `pairs` pairs of rows times one row of inputs, to out[0], out[1], .. `scales`: halves, or floats of one pair.
template <int kGroup, int kBits, int kBlock, bool kHalf>
__attribute__((noinline)) void one_input(
    const Product& product, const uint8_t* bytes, const void* scales, int64_t pairs, const int8_t* inputs,
    const float* input_scales, float* out, int64_t rows) {
  const int64_t pair_bytes = product.tiles * tile_bytes(kGroup, kBits);
  const auto* pair_scales = static_cast<const uint16_t*>(scales);
  for (; pairs; --pairs, rows -= 2, out += 2) {
    multiply_scales<kHalf, 1>(product, pair_scales, input_scales);
    __m256 total = _mm256_setzero_ps();
    multiply_pair<kGroup, kBits, kBlock, 1>(bytes, product.tiles, inputs, 0, product.products, 0, &total);
    store_some(pair_sums(total), rows < 2 ? rows : 2, out);
    bytes += pair_bytes;
    pair_scales += product.scales;
  }
}

// A pair of rows, or only its first, times kRows rows of inputs, to out[0] and out[1], out[rows] and out[rows + 1], ..
template <int kGroup, int kBits, int kBlock, bool kHalf, int kRows>
__attribute__((noinline)) void some_inputs(
    const Product& product, const uint8_t* bytes, const void* scales, const int8_t* inputs, const float* input_scales,
    float* out, int64_t rows, bool both) {
  multiply_scales<kHalf, kRows>(product, scales, input_scales);
  __m256 totals[kRows];
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[m] = _mm256_setzero_ps();
  multiply_pair<kGroup, kBits, kBlock, kRows>(
      bytes, product.tiles, inputs, product.columns, product.products, product.stride, totals);
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) store_some(pair_sums(totals[m]), both ? 2 : 1, out + m * rows);
}

// Each scale of the inputs twice: [rows, stride].
float* doubled(const Inputs& inputs, int64_t stride) {
  float* twice = block_buffer<3>(inputs.rows * stride);
  std::memset(twice, 0, static_cast<size_t>(inputs.rows * stride) * sizeof *twice);
  for (int64_t m = 0; m < inputs.rows; ++m) {
    for (int64_t block = 0; block < inputs.blocks; ++block) {
      const float scale = inputs.scales[m * inputs.stride + block];
      twice[m * stride + 2 * block] = twice[m * stride + 2 * block + 1] = scale;
    }
  }
  return twice;
}

// A pair of rows, which begins with row `row`, times rows [begin, end) of inputs: four by four, then two, then one.
template <int kGroup, int kBits, int kBlock, bool kHalf>
void all_inputs(
    const Product& product, const uint8_t* bytes, const void* scales, const Inputs& inputs, const float* input_scales,
    int64_t begin, int64_t end, int64_t row, int64_t rows, float* out) {
  const int64_t columns = inputs.columns, stride = product.stride;
  int64_t m = begin;
  for (; m + 4 <= end; m += 4) {
    some_inputs<kGroup, kBits, kBlock, kHalf, 4>(
        product, bytes, scales, inputs.codes + m * columns, input_scales + m * stride, out + m * rows + row, rows,
        row + 1 < rows);
  }
  if (m + 2 <= end) {
    some_inputs<kGroup, kBits, kBlock, kHalf, 2>(
        product, bytes, scales, inputs.codes + m * columns, input_scales + m * stride, out + m * rows + row, rows,
        row + 1 < rows);
    m += 2;
  }
  if (m == end) return;
  one_input<kGroup, kBits, kBlock, kHalf>(
      product, bytes, scales, 1, inputs.codes + m * columns, input_scales + m * stride, out + m * rows + row,
      rows - row);
}

template <int kGroup, int kBits, int kBlock>
void sparse(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t rows = weights.rows, tiles = (weights.columns + kTile - 1) / kTile;
  // Tiles may go beyond the last block: there products are 0.
  const int64_t stride = 2 * tiles * kTile / (kBlock < kTile ? kBlock : kTile) + kSlack;
  const int64_t pair_bytes = tiles * tile_bytes(kGroup, kBits);
  float* scales = block_buffer<0>(stride);
  const Product product{2 * weights.blocks, tiles, inputs.columns, stride, block_buffer<1>(4 * stride)};
  std::memset(product.products, 0, static_cast<size_t>(4 * stride) * sizeof *scales);
  const float* input_scales = doubled(inputs, stride);
  // Halves are read eight at a time: beyond a pair's blocks the next pair's, where inputs are 0. The last have none.
  const int64_t pairs = (rows + 1) / 2, beyond = (8 - product.scales % 8) % 8;
  const int64_t readable = 2 * (pairs - (beyond + product.scales - 1) / product.scales);
  const bool plain = weights.scales.half && weights.scales.blocks_per_scale == 1;
  const int64_t halves_end = plain ? std::clamp(readable, first, last) : first;
  const auto* halves = static_cast<const uint16_t*>(weights.scales.values);
  if (inputs.rows == 1 && halves_end > first) {
    one_input<kGroup, kBits, kBlock, true>(
        product, weights.tiles + first / 2 * pair_bytes, halves + first * weights.blocks, (halves_end - first + 1) / 2,
        inputs.codes, input_scales, out + first, last - first);
    first = halves_end;
  }
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; row += 2) {
      const uint8_t* bytes = weights.tiles + row / 2 * pair_bytes;
      if (row < halves_end) {
        all_inputs<kGroup, kBits, kBlock, true>(
            product, bytes, halves + row * weights.blocks, inputs, input_scales, begin, end, row, rows, out);
        continue;
      }
      block_scales<2>(weights.scales, row / 2, weights.blocks, scales);
      all_inputs<kGroup, kBits, kBlock, false>(
          product, bytes, scales, inputs, input_scales, begin, end, row, rows, out);
    }
  }
}

struct SparseLevel {
  template <int kGroup, int kBits, int kBlock>
  static void run(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
    sparse<kGroup, kBits, kBlock>(weights, inputs, first, last, out);
  }
};

}  // namespace

void sparse_avx2(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  sparse_of_form<SparseLevel>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
