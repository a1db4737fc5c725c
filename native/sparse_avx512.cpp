// N:M sparse products with AVX-512: as with AVX2, inputs are gathered by byte shuffles; two vectors of a tile at a
// time.
#include "avx512.h"
#include "sparse_forms.h"

namespace edgeblt {
namespace {

inline __m512i repeated(const uint8_t* bytes) {  // 32 bytes, twice
  return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)));
}

// 64-bit elements: the shift of each quarter.
inline __m512i quarter_shifts(int first, int second, int third, int fourth) {
  return _mm512_setr_epi64(first, first, second, second, third, third, fourth, fourth);
}

// Of half `kHalf` of a tile (vectors 2 * kHalf and 2 * kHalf + 1): for each slot the place of its input in the lane.
template <int kGroup, int kHalf>
inline __m512i places(const uint8_t* tile) {
  constexpr int kBit = 4 * kHalf;
  const __m512i pairs = _mm512_srlv_epi64(repeated(tile), quarter_shifts(kBit, kBit, kBit + 2, kBit + 2));
  const __m128i base = kGroup == 8 ? _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8)
                                   : _mm_setr_epi8(0, 0, 4, 4, 0, 0, 4, 4, 8, 8, 12, 12, 8, 8, 12, 12);
  __m512i found = _mm512_or_si512(_mm512_and_si512(pairs, _mm512_set1_epi8(3)), _mm512_broadcast_i32x4(base));
  if constexpr (kGroup == 8) {
    const __m512i bits = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + 32)));
    const __m512i bit = _mm512_srlv_epi64(bits, quarter_shifts(kBit, kBit + 1, kBit + 2, kBit + 3));
    found = _mm512_or_si512(found, _mm512_slli_epi16(_mm512_and_si512(bit, _mm512_set1_epi8(1)), 2));
  }
  return found;
}

template <int kGroup, int kBits, int kHalf>
inline __m512i values(const uint8_t* tile) {
  const uint8_t* stored = tile + index_bytes(kGroup);
  if constexpr (kBits == 8) return load(stored + 64 * kHalf);
  const __m512i codes = _mm512_srlv_epi64(repeated(stored + 32 * kHalf), quarter_shifts(0, 0, 4, 4));
  return _mm512_sub_epi8(_mm512_and_si512(codes, _mm512_set1_epi8(15)), _mm512_set1_epi8(8));
}

// Scales of a half's lanes: the two rows in turn, for 64 columns of `kBlock`. Reads eight floats.
template <int kBlock>
inline __m512 pair_scales(const float* scales) {
  const __m512 some = _mm512_castps256_ps512(_mm256_loadu_ps(scales));
  __m512i lanes = _mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1);
  if constexpr (kBlock == 32) lanes = _mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3);
  if constexpr (kBlock == 16) lanes = _mm512_setr_epi32(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7);
  return _mm512_permutexvar_ps(lanes, some);
}

template <int kGroup, int kBits, int kRows, int kHalf>
inline void add_half(const uint8_t* tile, const int8_t* inputs, int64_t columns, __m512i* sums) {
  const __m512i where = places<kGroup, kHalf>(tile), weights = values<kGroup, kBits, kHalf>(tile);
  const __m512i magnitudes = _mm512_abs_epi8(weights);
  const __mmask64 negative = _mm512_movepi8_mask(weights);
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    const __m512i gathered = _mm512_shuffle_epi8(load(inputs + m * columns + 64 * kHalf), where);
    sums[m] = signed_dots(sums[m], magnitudes, negative, gathered);
  }
}

template <int kBlock, int kRows>
inline void flush(const float* scales, int64_t stride, __m512i* sums, __m512* totals) {
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m]), pair_scales<kBlock>(scales + m * stride), totals[m]);
    sums[m] = _mm512_setzero_si512();
  }
}

// A pair of rows, or only its first, times kRows rows of inputs. `products`: [kRows, 2 * stride] of both rows in turn.
template <int kGroup, int kBits, int kBlock, int kRows>
__attribute__((noinline)) void multiply(
    const SparseWeights& weights, const Inputs& inputs, int64_t row, int64_t m, const float* scales, int64_t stride,
    float* products, float* out) {
  const bool both = row + 1 < weights.rows;
  for (int i = 0; i < kRows; ++i) {
    for (int64_t block = 0; block < weights.blocks; ++block) {
      const float input = inputs.scales[(m + i) * inputs.stride + block];
      products[2 * (i * stride + block)] = scales[2 * block] * input;
      products[2 * (i * stride + block) + 1] = scales[2 * block + 1] * input;
    }
  }
  const int64_t tiles = (weights.columns + kTile - 1) / kTile;
  const uint8_t* bytes = weights.tiles + row / 2 * tiles * tile_bytes(kGroup, kBits);
  const int8_t* codes = inputs.codes + m * inputs.columns;
  const float* next = products;
  __m512 totals[kRows];
  __m512i sums[kRows];
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    totals[i] = _mm512_setzero_ps();
    sums[i] = _mm512_setzero_si512();
  }
  for (int64_t index = 0; index < tiles; ++index) {
    add_half<kGroup, kBits, kRows, 0>(bytes, codes, inputs.columns, sums);
    if constexpr (kBlock <= 64) flush<kBlock, kRows>(next, 2 * stride, sums, totals);
    add_half<kGroup, kBits, kRows, 1>(bytes, codes, inputs.columns, sums);
    if constexpr (kBlock <= 64) {
      flush<kBlock, kRows>(next + 64 / kBlock * 2, 2 * stride, sums, totals);
      next += kTile / kBlock * 2;
    } else if (kBlock == kTile || index % 2 || index + 1 == tiles) {
      flush<kBlock, kRows>(next, 2 * stride, sums, totals);
      next += 2;
    }
    bytes += tile_bytes(kGroup, kBits);
    codes += kTile;
  }
  EDGEBLT_UNROLL for (int i = 0; i < kRows; ++i) {
    __m128 sum = quarters(totals[i]);
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    float* place = out + (m + i) * weights.rows + row;
    place[0] = _mm_cvtss_f32(sum);
    if (both) place[1] = _mm_cvtss_f32(_mm_movehdup_ps(sum));
  }
}

template <int kGroup, int kBits, int kBlock>
void sparse(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  // Tiles may go beyond the last block: there products are 0.
  const int64_t stride = (weights.columns + kTile - 1) / kTile * kTile / kBlock + kSlack;
  float* scales = block_buffer<0>(2 * stride);
  float* products = block_buffer<1>(4 * 2 * stride);
  std::memset(products, 0, static_cast<size_t>(4 * 2 * stride) * sizeof *products);
  for (int64_t begin = 0; begin < inputs.rows; begin += kInputRun) {
    const int64_t end = begin + kInputRun < inputs.rows ? begin + kInputRun : inputs.rows;
    for (int64_t row = first; row < last; row += 2) {
      block_scales<2>(weights.scales, row / 2, weights.blocks, scales);
      int64_t m = begin;
      for (; m + 4 <= end; m += 4) {
        multiply<kGroup, kBits, kBlock, 4>(weights, inputs, row, m, scales, stride, products, out);
      }
      for (; m < end; ++m) {
        multiply<kGroup, kBits, kBlock, 1>(weights, inputs, row, m, scales, stride, products, out);
      }
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

void sparse_avx512(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  sparse_of_form<SparseLevel>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
