// Dense products with AMX: a tile multiplies sixteen rows of inputs by a group of sixteen rows of weights, 64 columns at
// once. Codes of 8 bits are multiplied where they lie, unsigned; those of 4 bits are widened first and made signed. The
// sums of a few blocks leave the tiles for memory, and are then added to totals in vectors; to do both at once was slower.
// Few rows, and very small blocks, are AVX-512's.
#ifdef EDGEBLT_EMULATED
#include "tests/emulated_amx.h"
#endif
#include "avx512.h"
#include "dense_zmm.h"

#include <algorithm>

namespace edgeblt {
namespace {

constexpr int64_t kTileRows = kWideTileRows, kTileBytes = kWideTile;
// Fewer rows are faster with AVX-512, whatever the bits and the number of inputs (docs/kernels.md has the times): each
// block has sums to be stored and added, and AVX-512 reads few rows' weights in streams.
constexpr int64_t kFewestRows = 8, kFewestRowsOfSmall = 16;  // of blocks of 64 and more, and of 32; of 16 none is many
constexpr int64_t kSmallestBlock = 32;
constexpr int64_t kSquare = kTileRows * kGroup;  // a tile of sums
constexpr int64_t kPanel = kWidePanel / kGroup;  // groups that a part of the inputs is read for
constexpr int64_t kPass = kWidePass;             // rows of inputs that a part of the weights is read for
constexpr int64_t kPartBytes = 16384;            // at most, of a pass of inputs
constexpr int64_t kCachedBytes = 1 << 18;        // more weights are taken to come from memory, and asked for ahead
constexpr int64_t kMostGroups = 4;               // of weights with one tile of inputs, where no codes are widened

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 hold sums, 4 inputs, 6 and 7 weights, each of `columns` columns; 5 more inputs, or weights where there is
// one tile of inputs.
void configure(int64_t columns, int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    const bool has_inputs = tile == 4 || (tile == 5 && rows > kTileRows);
    config.row_bytes[tile] = static_cast<uint16_t>(has_inputs ? columns : kTileBytes);
    config.rows[tile] = static_cast<uint8_t>(tile < 4 || has_inputs ? std::min(rows, kTileRows) : columns / 4);
  }
  __asm__ volatile("" : : "r"(&config) : "memory");  // GCC 12 takes the next line to read no more than a pointer's bytes
  _tile_loadconfig(&config);
}

// What is added to a block's sums for each row: nothing, the sum of its inputs times -128, or times the zero points.
enum class Offset { kNone, kMiddle, kPoints };

// Blocks [begin, end) of one or two groups of weights, and one or two tiles of inputs; or of four, and one.
struct Part {
  int64_t group, groups, rows, tiles, begin, end;
  InputTile inputs[2];
  const uint8_t* codes[kMostGroups];   // of each group's block `begin`, a byte each
  const uint8_t* stored[kMostGroups];  // the same as they are stored
  int64_t ahead;                       // bytes from there to the weights that are to be asked for; 0 for none
  float* totals;                       // [tiles, groups, 16, 16]
  int32_t* sums;                       // [tiles, groups, blocks, 16, 16]
  float* out;                          // of the first row of inputs

  int64_t squares() const { return tiles * groups; }
  int64_t blocks() const { return end - begin; }
};

// Asks for as many bytes as a tile of weights has, stored in kBits; while tiles are multiplied, for to ask for all at
// once waits for memory.
template <int kBits>
inline __attribute__((always_inline)) void prefetch_tile(const uint8_t* stored, int64_t columns, int64_t ahead) {
  constexpr int64_t kBytes = kStep * kGroup * kBits / 8;
  if (!ahead) return;
  for (int64_t step = 0; step < columns / kStep; ++step) prefetch<kBytes>(stored + step * kBytes, ahead);
}

// Macros, for tiles are numbered by constants of the instruction.
#define EDGEBLT_MULTIPLY(sums, inputs, weights)   \
  do {                                            \
    if constexpr (kBits == 8) {                   \
      _tile_dpbsud(sums, inputs, weights);        \
    } else {                                      \
      _tile_dpbssd(sums, inputs, weights);        \
    }                                             \
  } while (false)

// A group's weights, with the first tile of inputs; its sums are in the tile of its number.
#define EDGEBLT_MULTIPLY_GROUP(group, weights)                                                 \
  do {                                                                                         \
    _tile_loadd(weights, part.codes[group] + code, kTileBytes);                                \
    prefetch_tile<kBits>(part.stored[group] + code * kBits / 8, columns, part.ahead);          \
    EDGEBLT_MULTIPLY(group, 4, weights);                                                       \
  } while (false)

template <int kBits, int kGroups, int kTiles>
void multiply_block(const Part& part, int64_t block_size, int64_t columns, int64_t block) {
  constexpr int64_t kTileSize = kTileRows * kTileBytes;
  int64_t place = (part.begin + block) * block_size, code = block * block_size * kGroup;
  _tile_zero(0);
  if constexpr (kGroups > 1) _tile_zero(1);
  if constexpr (kTiles == 2 || kGroups == 4) _tile_zero(2);
  if constexpr (kGroups * kTiles == 4) _tile_zero(3);
  for (int64_t column = 0; column < block_size; column += columns, place += columns, code += columns * kGroup) {
    const int64_t input = place / kTileBytes * kTileSize + place % kTileBytes;
    _tile_loadd(4, part.inputs[0].codes + input, kTileBytes);
    EDGEBLT_MULTIPLY_GROUP(0, 6);
    if constexpr (kGroups > 1) EDGEBLT_MULTIPLY_GROUP(1, 7);
    if constexpr (kGroups == 4) {
      EDGEBLT_MULTIPLY_GROUP(2, 5);
      EDGEBLT_MULTIPLY_GROUP(3, 6);
    }
    if constexpr (kTiles == 2) {
      _tile_loadd(5, part.inputs[1].codes + input, kTileBytes);
      EDGEBLT_MULTIPLY(2, 5, 6);
      if constexpr (kGroups == 2) EDGEBLT_MULTIPLY(3, 5, 7);
    }
  }
  int32_t* sums = part.sums + block * kSquare;
  const int64_t stride = part.blocks() * kSquare;
  _tile_stored(0, sums, kTileBytes);
  if constexpr (kGroups > 1) _tile_stored(1, sums + stride, kTileBytes);
  if constexpr (kTiles == 2 || kGroups == 4) _tile_stored(2, sums + (kGroups == 1 ? 1 : 2) * stride, kTileBytes);
  if constexpr (kGroups * kTiles == 4) _tile_stored(3, sums + 3 * stride, kTileBytes);
}

template <int kBits>
void multiply_block_of(const Part& part, int64_t block_size, int64_t block) {
  const int64_t columns = std::min(block_size, kTileBytes);
  if (part.groups == 4) return multiply_block<kBits, 4, 1>(part, block_size, columns, block);
  if (part.tiles == 2) {
    (part.groups == 2 ? multiply_block<kBits, 2, 2> : multiply_block<kBits, 1, 2>)(part, block_size, columns, block);
  } else {
    (part.groups == 2 ? multiply_block<kBits, 2, 1> : multiply_block<kBits, 1, 1>)(part, block_size, columns, block);
  }
}

// Adds the sums of kRows rows of a part's square to their totals, which begin with the first block.
template <int kBits, int kRows, Offset kOffset>
void add_square(const DenseWeights& weights, const Part& part, int64_t square) {
  const InputTile& tile = part.inputs[square / part.groups];
  const int64_t group = part.group + square % part.groups;
  const int32_t* sums = part.sums + square * part.blocks() * kSquare;
  float* place = part.totals + square * kSquare;
  __m512 totals[kRows];
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
    totals[m] = part.begin ? _mm512_load_ps(place + m * kGroup) : _mm512_setzero_ps();
  }
  ScaleCursor cursor(weights, group, part.begin);
  for (int64_t block = part.begin; block < part.end; ++block, sums += kSquare, cursor.next_block()) {
    const __m512 scales = load_scales(weights.scales, cursor.index());
    __m512i points;
    if constexpr (kOffset == Offset::kPoints) {
      points = negative_zero_points<kBits>(weights, group * weights.blocks + block, kBits == 8 ? 0 : 8);
    }
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
      __m512i sum = _mm512_load_si512(sums + m * kGroup);
      const int64_t input = block * kTileRows + m;
      if constexpr (kOffset == Offset::kMiddle) {
        sum = _mm512_add_epi32(sum, _mm512_set1_epi32(tile.middles[input]));
      } else if constexpr (kOffset == Offset::kPoints) {
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(points, _mm512_set1_epi32(tile.sums[input])));
      }
      const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(tile.scales[input]));
      totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, totals[m]);
    }
  }
  EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) _mm512_store_ps(place + m * kGroup, totals[m]);
}

// The same of those rows that are there; where they are complete, they are written out.
template <int kBits, Offset kOffset>
void add_square_of(const DenseWeights& weights, const Part& part, int64_t square) {
  const int64_t row = square / part.groups * kTileRows, rows = std::min(kTileRows, part.rows - row);
  if (rows <= 4) {
    add_square<kBits, 4, kOffset>(weights, part, square);
  } else if (rows <= 8) {
    add_square<kBits, 8, kOffset>(weights, part, square);
  } else {
    (rows <= 12 ? add_square<kBits, 12, kOffset> : add_square<kBits, 16, kOffset>)(weights, part, square);
  }
  if (part.end < weights.blocks) return;
  const int64_t group = part.group + square % part.groups;
  const auto inside = static_cast<__mmask16>((1u << rows_of_group(weights, group)) - 1);
  const float* totals = part.totals + square * kSquare;
  float* out = part.out + row * weights.rows + group * kGroup;
  for (int64_t m = 0; m < rows; ++m) {
    _mm512_mask_storeu_ps(out + m * weights.rows, inside, _mm512_load_ps(totals + m * kGroup));
  }
}

template <int kBits, Offset kOffset>
void multiply_part(const DenseWeights& weights, const Part& part) {
  for (int64_t block = 0; block < part.blocks(); ++block) multiply_block_of<kBits>(part, weights.block_size, block);
  for (int64_t square = 0; square < part.squares(); ++square) add_square_of<kBits, kOffset>(weights, part, square);
}

// Codes of 4 bits as signed bytes, four columns of sixteen rows in 64 of them.
void widen(const uint8_t* codes, int64_t columns, uint8_t* out) {
  const __m512i middle = _mm512_set1_epi8(8);
  for (int64_t column = 0; column < columns; column += kStep, codes += kStep * kGroup / 2) {
    __m512i vectors[4];
    load_step<4>(codes, vectors);
    EDGEBLT_UNROLL for (int i = 0; i < 4; ++i, out += 64) _mm512_store_si512(out, _mm512_sub_epi8(vectors[i], middle));
  }
  __asm__ volatile("" : : : "memory");  // tiles read them, which the compiler does not know
}

// Groups [first, last), a panel, with a pass of the inputs' rows; with one_tile these are all, and tiles are set for that.
template <int kBits, Offset kOffset>
void multiply_panel(
    const DenseWeights& weights, const Inputs& inputs, bool one_tile, int64_t first, int64_t last, float* out) {
  const int64_t rows = inputs.rows, size = weights.block_size, group_bytes = weights.blocks * weights.block_bytes();
  const int64_t held = (rows + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t most = size < kTileBytes ? 3 : 2;  // a part's inputs, weights and sums stay in the first cache
  const int64_t blocks = std::clamp<int64_t>(kPartBytes / (held * size), 1, most);
  float* totals = block_buffer<5>(kPanel * kPass * kGroup);
  auto* sums = reinterpret_cast<int32_t*>(block_buffer<6>(4 * blocks * kSquare));
  auto* widened = reinterpret_cast<uint8_t*>(block_buffer<7>(kBits == 8 ? 0 : 2 * blocks * size * kGroup / 4));
  const int64_t most_groups = kBits == 8 && one_tile ? kMostGroups : 2;
  const bool far = weights.rows * weights.columns * kBits / 8 > kCachedBytes;
  Part part{};
  AheadOfStreams ahead(group_bytes, kPanel);
  for (int64_t begin = 0; begin < weights.blocks; begin += blocks) {
    part.begin = begin, part.end = std::min(weights.blocks, begin + blocks);
    const int64_t distance = ahead.next_block(part.blocks() * weights.block_bytes());
    for (int64_t group = first; group < last; group += part.groups) {
      part.group = group, part.groups = last - group < most_groups ? std::min<int64_t>(2, last - group) : most_groups;
      for (int64_t i = 0; i < part.groups; ++i) {
        part.codes[i] = weights.codes + (group + i) * group_bytes + begin * weights.block_bytes();
        part.stored[i] = part.codes[i];
        if constexpr (kBits == 4) {
          uint8_t* place = widened + i * blocks * size * kGroup;
          widen(part.codes[i], part.blocks() * size, place);
          part.codes[i] = place;
        }
      }
      for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
        part.rows = std::min(2 * kTileRows, rows - row), part.tiles = part.rows > kTileRows ? 2 : 1;
        for (int64_t i = 0; i < part.tiles; ++i) part.inputs[i] = wide_tile_at(inputs, row + i * kTileRows);
        part.ahead = far && row == 0 ? distance : 0;
        part.totals = totals + (row * kPanel + (group - first) * 2 * kTileRows) * kGroup;
        part.sums = sums;
        part.out = out + row * weights.rows;
        multiply_part<kBits, kOffset>(weights, part);
      }
    }
  }
}

template <int kBits, Offset kOffset>
void multiply_tiles(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  configure(std::min(weights.block_size, kTileBytes), inputs.rows);
  const bool one_tile = inputs.rows <= kTileRows;
  const int64_t end = (last + kGroup - 1) / kGroup;
  for (int64_t group = first / kGroup; group < end; group += kPanel) {
    for (int64_t row = 0; row < inputs.rows; row += kPass) {
      const Inputs some = some_rows(inputs, row, std::min(kPass, inputs.rows - row));
      float* place = out + row * weights.rows;
      multiply_panel<kBits, kOffset>(weights, some, one_tile, group, std::min(end, group + kPanel), place);
    }
  }
  _tile_release();
}

}  // namespace

int64_t amx_tile_width(int64_t rows, int64_t block_size) {
  if (block_size < kSmallestBlock) return kNarrowTile;
  return rows < (block_size < kTileBytes ? kFewestRowsOfSmall : kFewestRows) ? kNarrowTile : kWideTile;
}

void dense_amx(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (inputs.tile_width != kWideTile || inputs.rows == 1) return dense_avx512(weights, inputs, first, last, out);
  if (weights.bits == 8) {
    (weights.zero_points ? multiply_tiles<8, Offset::kPoints> : multiply_tiles<8, Offset::kMiddle>)(
        weights, inputs, first, last, out);
  } else {
    (weights.zero_points ? multiply_tiles<4, Offset::kPoints> : multiply_tiles<4, Offset::kNone>)(
        weights, inputs, first, last, out);
  }
}

}  // namespace edgeblt
