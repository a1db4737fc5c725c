// Dense products of many rows of inputs with AMX: a tile multiplies sixteen rows of inputs by a group of sixteen rows of
// weights, 64 columns at once. Codes are made signed on the way, so that only zero points of their own have to be taken
// off by sums of inputs. Few rows, and small blocks, whose sums leave the tiles too often, are AVX-512's.
#ifdef EDGEBLT_EMULATED
#include "tests/emulated_amx.h"
#endif
#include "avx512.h"
#include "dense_zmm.h"

#include <algorithm>

namespace edgeblt {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 64;
constexpr int64_t kFewestRows = 16, kSmallestBlock = 32;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights; of `columns` columns.
void configure(int64_t columns) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool inputs = tile == 4 || tile == 5;
    config.row_bytes[tile] = static_cast<uint16_t>(inputs ? columns : kTileBytes);
    config.rows[tile] = static_cast<uint8_t>(tile >= 6 ? columns / 4 : kTileRows);
  }
  _tile_loadconfig(&config);
}

// A block's codes as signed bytes, four columns of sixteen rows in 64 bytes.
template <int kBits>
void unpack(const uint8_t* codes, int64_t columns, uint8_t* out) {
  const __m512i center = _mm512_set1_epi8(kBits == 8 ? -128 : 8);
  for (int64_t column = 0; column < columns; column += kStep, codes += kStep * kGroup * kBits / 8) {
    __m512i vectors[4];
    load_step<kBits>(codes, vectors);
    prefetch<kStep * kGroup * kBits / 8>(codes);
    EDGEBLT_UNROLL for (int i = 0; i < 4; ++i, out += 64) _mm512_store_si512(out, _mm512_sub_epi8(vectors[i], center));
  }
}

// One or two groups at once, and one or two tiles of inputs.
struct Work {
  const DenseWeights& weights;
  const Inputs& inputs;
  int64_t group, tile_columns;
  uint8_t* unpacked;  // [groups, block_size * 16]
  int32_t* sums;      // [inputs, groups, 16, 16]
  float* totals;      // [rows, groups, 16]
};

// A tile's sums of a block to their rows' totals.
template <int kBits, int kGroups>
void add_sums(const Work& work, int64_t block, int64_t index, int64_t row, const int32_t* sums, const __m512* scales) {
  const Inputs& inputs = work.inputs;
  const bool has_points = work.weights.zero_points != nullptr;
  constexpr int kCenter = 1 << (kBits - 1);
  const __m512i points = negative_zero_points<kBits>(
      work.weights, (work.group + index) * work.weights.blocks + block, kCenter);
  for (int64_t m = 0; m < kTileRows; ++m) {
    const int64_t place = (row + m) * inputs.stride + block;
    __m512i sum = _mm512_load_si512(sums + m * kGroup);
    if (has_points) {
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(points, _mm512_set1_epi32(inputs.sums[place])));
    }
    float* total = work.totals + ((row + m) * kGroups + index) * kGroup;
    const __m512 scale = _mm512_mul_ps(scales[index], _mm512_set1_ps(inputs.scales[place]));
    _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_load_ps(total)));
  }
}

// A block's products, of tiles that begin with rows[0] and, where there are two, rows[1] of the inputs.
template <int kBits, int kGroups, int kTiles>
void multiply_block(const Work& work, int64_t block, const int64_t* rows, const __m512* scales) {
  const int64_t block_size = work.weights.block_size, stride = work.inputs.columns;
  const int8_t* in = work.inputs.codes + block * block_size;
  _tile_zero(0);
  if constexpr (kGroups == 2) _tile_zero(1);
  if constexpr (kTiles == 2) _tile_zero(2);
  if constexpr (kGroups == 2 && kTiles == 2) _tile_zero(3);
  for (int64_t column = 0; column < block_size; column += work.tile_columns) {
    _tile_loadd(6, work.unpacked + column * kGroup, kTileBytes);
    if constexpr (kGroups == 2) _tile_loadd(7, work.unpacked + (block_size + column) * kGroup, kTileBytes);
    _tile_loadd(4, in + rows[0] * stride + column, static_cast<int>(stride));
    _tile_dpbssd(0, 4, 6);
    if constexpr (kGroups == 2) _tile_dpbssd(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, in + rows[1] * stride + column, static_cast<int>(stride));
      _tile_dpbssd(2, 5, 6);
      if constexpr (kGroups == 2) _tile_dpbssd(3, 5, 7);
    }
  }
  constexpr int64_t kSize = kTileRows * kGroup;
  _tile_stored(0, work.sums, kTileBytes);
  if constexpr (kGroups == 2) _tile_stored(1, work.sums + kSize, kTileBytes);
  if constexpr (kTiles == 2) _tile_stored(2, work.sums + kGroups * kSize, kTileBytes);
  if constexpr (kGroups == 2 && kTiles == 2) _tile_stored(3, work.sums + 3 * kSize, kTileBytes);
  for (int64_t tile = 0; tile < kTiles; ++tile) {
    for (int64_t index = 0; index < kGroups; ++index) {
      add_sums<kBits, kGroups>(work, block, index, rows[tile], work.sums + (tile * kGroups + index) * kSize, scales);
    }
  }
}

// All rows of inputs, whole tiles of them, times kGroups groups.
template <int kBits, int kGroups>
void multiply_groups(const Work& work, float* out) {
  const DenseWeights& weights = work.weights;
  const int64_t rows = work.inputs.rows;
  std::memset(work.totals, 0, static_cast<size_t>(rows * kGroups * kGroup) * sizeof *work.totals);
  ScaleCursor cursor(weights, work.group);
  for (int64_t block = 0; block < weights.blocks; ++block) {
    __m512 scales[kGroups];
    for (int64_t index = 0; index < kGroups; ++index) {
      const int64_t place = (work.group + index) * weights.blocks + block;
      unpack<kBits>(weights.codes + place * weights.block_bytes(), weights.block_size,
                    work.unpacked + index * weights.block_size * kGroup);
      scales[index] = load_scales(weights.scales, cursor.index() + index * weights.scales.per_row * kGroup);
    }
    int64_t row = 0;
    for (; row + 2 * kTileRows <= rows; row += 2 * kTileRows) {
      const int64_t starts[] = {row, row + kTileRows};
      multiply_block<kBits, kGroups, 2>(work, block, starts, scales);
    }
    if (row < rows) multiply_block<kBits, kGroups, 1>(work, block, &row, scales);
    cursor.next_block();
  }
  for (int64_t index = 0; index < kGroups; ++index) {
    const int64_t group = work.group + index;
    const auto inside = static_cast<__mmask16>((1u << rows_of_group(weights, group)) - 1);
    for (int64_t m = 0; m < rows; ++m) {
      const __m512 totals = _mm512_load_ps(work.totals + (m * kGroups + index) * kGroup);
      _mm512_mask_storeu_ps(out + m * weights.rows + group * kGroup, inside, totals);
    }
  }
}

template <int kBits>
void multiply_tiles(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t columns = std::min<int64_t>(weights.block_size, kTileBytes);
  auto* unpacked = reinterpret_cast<uint8_t*>(block_buffer<5>(2 * weights.block_size * kGroup / 4));
  auto* sums = reinterpret_cast<int32_t*>(block_buffer<6>(4 * kTileRows * kGroup));
  float* totals = block_buffer<7>(inputs.rows * 2 * kGroup);
  configure(columns);
  const int64_t end = (last + kGroup - 1) / kGroup;
  int64_t group = first / kGroup;
  for (; group + 2 <= end; group += 2) {
    multiply_groups<kBits, 2>({weights, inputs, group, columns, unpacked, sums, totals}, out);
  }
  if (group < end) multiply_groups<kBits, 1>({weights, inputs, group, columns, unpacked, sums, totals}, out);
  _tile_release();
}

Inputs some_rows(const Inputs& inputs, int64_t row, int64_t count) {
  Inputs some = inputs;
  some.rows = count;
  some.codes += row * inputs.columns;
  some.scales += row * inputs.stride;
  some.sums += row * inputs.stride;
  return some;
}

}  // namespace

void dense_amx(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t whole = inputs.rows / kTileRows * kTileRows;
  if (inputs.rows < kFewestRows || weights.block_size < kSmallestBlock) {
    return dense_avx512(weights, inputs, first, last, out);
  }
  const Inputs tiles = some_rows(inputs, 0, whole);
  (weights.bits == 4 ? multiply_tiles<4> : multiply_tiles<8>)(weights, tiles, first, last, out);
  if (whole == inputs.rows) return;
  const Inputs rest = some_rows(inputs, whole, inputs.rows - whole);
  dense_avx512(weights, rest, first, last, out + whole * weights.rows);
}

}  // namespace edgeblt
