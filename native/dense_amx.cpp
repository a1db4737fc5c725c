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
constexpr int64_t kFewestRows = 16, kSmallestBlock = 64;

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
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC 12 takes the next line to read no more than a pointer's bytes
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
    EDGEBLT_UNROLL for (int i = 0; i < 4; ++i, out += 64) {
      const __m512i less = kBits == 8 ? _mm512_xor_si512(vectors[i], center) : _mm512_sub_epi8(vectors[i], center);
      _mm512_store_si512(out, less);
    }
  }
}

// What the products of one or two groups are computed in.
struct Work {
  const DenseWeights& weights;
  const Inputs& inputs;
  int64_t group, tile_columns;
  uint8_t* unpacked;  // [groups, block_size * 16]
  int32_t* sums;      // [2 tiles of inputs, groups, 16, 16]
  float* totals;      // [rows, groups, 16]
};

// Sums that have left the tiles: of a block, and of `tiles` tiles of inputs from `row` on.
struct Pending {
  int64_t block = 0, row = 0, tiles = 0;
  __m512 scales[2];
  __m512i points[2];  // what sums of inputs are multiplied by
};

template <int kGroups, bool kPoints>
void add_tile(const Work& work, const Pending& pending, int64_t tile, int64_t index) {
  const int64_t row = pending.row + tile * kTileRows, stride = work.inputs.stride;
  const int32_t* sums = work.sums + (tile * kGroups + index) * kTileRows * kGroup;
  const float* scales = work.inputs.scales + row * stride + pending.block;
  const int32_t* input_sums = work.inputs.sums + row * stride + pending.block;
  float* total = work.totals + (row * kGroups + index) * kGroup;
  EDGEBLT_UNROLL for (int64_t m = 0; m < kTileRows; ++m, total += kGroups * kGroup) {
    __m512i sum = _mm512_load_si512(sums + m * kGroup);
    if constexpr (kPoints) {
      const __m512i offset = _mm512_madd_epi16(pending.points[index], _mm512_set1_epi32(input_sums[m * stride]));
      sum = _mm512_add_epi32(sum, offset);
    }
    const __m512 scale = _mm512_mul_ps(pending.scales[index], _mm512_set1_ps(scales[m * stride]));
    _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, _mm512_load_ps(total)));
  }
}

// Adds pending sums to their rows' totals.
template <int kGroups>
void add_pending(const Work& work, const Pending& pending) {
  for (int64_t tile = 0; tile < pending.tiles; ++tile) {
    for (int64_t index = 0; index < kGroups; ++index) {
      (work.weights.zero_points ? add_tile<kGroups, true> : add_tile<kGroups, false>)(work, pending, tile, index);
    }
  }
}

// A block's products, of kTiles tiles of inputs from `row` on. While tiles are at it, `pending` is added.
template <int kGroups, int kTiles>
void multiply_block(const Work& work, int64_t block, int64_t row, const Pending& pending) {
  const int64_t block_size = work.weights.block_size, stride = work.inputs.columns;
  const int8_t* in = work.inputs.codes + row * stride + block * block_size;
  _tile_zero(0);
  if constexpr (kGroups == 2) _tile_zero(1);
  if constexpr (kTiles == 2) _tile_zero(2);
  if constexpr (kGroups == 2 && kTiles == 2) _tile_zero(3);
  for (int64_t column = 0; column < block_size; column += work.tile_columns) {
    _tile_loadd(6, work.unpacked + column * kGroup, kTileBytes);
    if constexpr (kGroups == 2) _tile_loadd(7, work.unpacked + (block_size + column) * kGroup, kTileBytes);
    _tile_loadd(4, in + column, static_cast<int>(stride));
    _tile_dpbssd(0, 4, 6);
    if constexpr (kGroups == 2) _tile_dpbssd(1, 4, 7);
    if constexpr (kTiles == 2) {
      _tile_loadd(5, in + kTileRows * stride + column, static_cast<int>(stride));
      _tile_dpbssd(2, 5, 6);
      if constexpr (kGroups == 2) _tile_dpbssd(3, 5, 7);
    }
  }
  add_pending<kGroups>(work, pending);
  constexpr int64_t kSize = kTileRows * kGroup;
  _tile_stored(0, work.sums, kTileBytes);
  if constexpr (kGroups == 2) _tile_stored(1, work.sums + kSize, kTileBytes);
  if constexpr (kTiles == 2) _tile_stored(2, work.sums + kGroups * kSize, kTileBytes);
  if constexpr (kGroups == 2 && kTiles == 2) _tile_stored(3, work.sums + 3 * kSize, kTileBytes);
}

template <int kGroups>
void store_totals(const Work& work, float* out) {
  const int64_t width = work.weights.rows;
  for (int64_t index = 0; index < kGroups; ++index) {
    const int64_t group = work.group + index;
    const auto inside = static_cast<__mmask16>((1u << rows_of_group(work.weights, group)) - 1);
    for (int64_t m = 0; m < work.inputs.rows; ++m) {
      const __m512 totals = _mm512_load_ps(work.totals + (m * kGroups + index) * kGroup);
      _mm512_mask_storeu_ps(out + m * width + group * kGroup, inside, totals);
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
  Pending pending;
  for (int64_t block = 0; block < weights.blocks; ++block, cursor.next_block()) {
    __m512 scales[kGroups];
    __m512i points[kGroups];
    for (int64_t index = 0; index < kGroups; ++index) {
      const int64_t place = (work.group + index) * weights.blocks + block;
      unpack<kBits>(weights.codes + place * weights.block_bytes(), weights.block_size,
                    work.unpacked + index * weights.block_size * kGroup);
      scales[index] = load_scales(weights.scales, cursor.index() + index * weights.scales.per_row * kGroup);
      points[index] = negative_zero_points<kBits>(weights, place, 1 << (kBits - 1));
    }
    for (int64_t row = 0, tiles = 2; row < rows; row += tiles * kTileRows) {
      tiles = rows - row > kTileRows ? 2 : 1;
      (tiles == 2 ? multiply_block<kGroups, 2> : multiply_block<kGroups, 1>)(work, block, row, pending);
      pending.block = block, pending.row = row, pending.tiles = tiles;
      std::copy_n(scales, kGroups, pending.scales);
      std::copy_n(points, kGroups, pending.points);
    }
  }
  add_pending<kGroups>(work, pending);
  store_totals<kGroups>(work, out);
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

}  // namespace

// Rows that go in tiles of AMX; all others are AVX-512's.
int64_t amx_rows(int64_t rows, int64_t block_size) {
  return rows < kFewestRows || block_size < kSmallestBlock ? 0 : rows / kTileRows * kTileRows;
}

void dense_amx(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t whole = amx_rows(inputs.rows, weights.block_size), left = inputs.rows - whole;
  if (whole) {
    const Inputs tiles = some_rows(inputs, 0, whole);
    (weights.bits == 4 ? multiply_tiles<4> : multiply_tiles<8>)(weights, tiles, first, last, out);
  }
  if (left) dense_avx512(weights, some_rows(inputs, whole, left), first, last, out + whole * weights.rows);
}

}  // namespace edgeblt
