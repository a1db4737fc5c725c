// N:M sparse products with AVX2. Not the weights are spread out but the inputs gathered: one byte shuffle fetches, for 16
// stored values in a lane, their inputs out of the 16 that the lane covers. So only values that are not zero cost.
#include "avx2.h"

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
  int64_t blocks, tiles, columns;
  int64_t input_stride, stride;  // of scales of the inputs, and of the weights: scales beyond the blocks are 0
  float* products;               // [4, 2 * stride]
};

// A pair of rows, or only its first, times kRows rows of inputs, to out[0] and out[1], out[rows] and out[rows + 1], ..
template <int kGroup, int kBits, int kBlock, int kRows>
__attribute__((noinline)) void multiply(
    const Product& product, const uint8_t* bytes, const float* scales, const int8_t* inputs, const float* input_scales,
    float* out, int64_t rows, bool both) {
  const int64_t stride = product.stride;
  __m256 totals[kRows];
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[m] = _mm256_setzero_ps();
  for (int64_t block = 0; block < product.blocks; block += 8) {
    const __m256 first = _mm256_loadu_ps(scales + block), second = _mm256_loadu_ps(scales + stride + block);
    const __m256 low = _mm256_unpacklo_ps(first, second), high = _mm256_unpackhi_ps(first, second);
    const __m256 front = _mm256_permute2f128_ps(low, high, 0x20), back = _mm256_permute2f128_ps(low, high, 0x31);
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      const __m256 input = _mm256_loadu_ps(input_scales + m * product.input_stride + block);
      const __m256 twice_low = _mm256_unpacklo_ps(input, input), twice_high = _mm256_unpackhi_ps(input, input);
      float* place = product.products + m * 2 * stride + 2 * block;
      _mm256_storeu_ps(place, _mm256_mul_ps(front, _mm256_permute2f128_ps(twice_low, twice_high, 0x20)));
      _mm256_storeu_ps(place + 8, _mm256_mul_ps(back, _mm256_permute2f128_ps(twice_low, twice_high, 0x31)));
    }
  }
  multiply_pair<kGroup, kBits, kBlock, kRows>(
      bytes, product.tiles, inputs, product.columns, product.products, 2 * stride, totals);
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(totals[m]), _mm256_extractf128_ps(totals[m], 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    out[m * rows] = _mm_cvtss_f32(sum);
    if (both) out[m * rows + 1] = _mm_cvtss_f32(_mm_movehdup_ps(sum));
  }
}

template <int kGroup, int kBits, int kBlock>
void sparse(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t rows = weights.rows, tiles = (weights.columns + kTile - 1) / kTile;
  const int64_t stride = tiles * kTile / kBlock + kSlack;
  float* scales = block_buffer<0>(2 * stride);
  const Product product{weights.blocks, tiles, inputs.columns, inputs.stride, stride, block_buffer<1>(4 * 2 * stride)};
  std::memset(scales, 0, static_cast<size_t>(2 * stride) * sizeof *scales);
  std::memset(product.products, 0, static_cast<size_t>(4 * 2 * stride) * sizeof *scales);
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; row += 2) {
      const bool both = row + 1 < rows;
      const uint8_t* bytes = weights.tiles + row / 2 * tiles * tile_bytes(kGroup, kBits);
      load_scales(weights.scales, row, both ? 2 : 1, weights.blocks, scales, stride);
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) {
        multiply<kGroup, kBits, kBlock, 4>(
            product, bytes, scales, inputs.codes + m * inputs.columns, inputs.scales + m * inputs.stride,
            out + m * rows + row, rows, both);
      }
      for (; m < end; ++m) {
        multiply<kGroup, kBits, kBlock, 1>(
            product, bytes, scales, inputs.codes + m * inputs.columns, inputs.scales + m * inputs.stride,
            out + m * rows + row, rows, both);
      }
    }
  }
}

template <int kGroup, int kBits>
void sparse_of_block(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return sparse<kGroup, kBits, 16>(weights, inputs, first, last, out);
    case 32: return sparse<kGroup, kBits, 32>(weights, inputs, first, last, out);
    case 64: return sparse<kGroup, kBits, 64>(weights, inputs, first, last, out);
    case 128: return sparse<kGroup, kBits, 128>(weights, inputs, first, last, out);
    default: return sparse<kGroup, kBits, 256>(weights, inputs, first, last, out);
  }
}

}  // namespace

void sparse_avx2(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.group == 4 && weights.bits == 8) return sparse_of_block<4, 8>(weights, inputs, first, last, out);
  if (weights.group == 4) return sparse_of_block<4, 4>(weights, inputs, first, last, out);
  if (weights.bits == 8) return sparse_of_block<8, 8>(weights, inputs, first, last, out);
  return sparse_of_block<8, 4>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
