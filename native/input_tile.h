// Rounded inputs side by side, as the dense kernels read them: rows in tiles of `Kernels::tile_rows`, of each row
// `Inputs::tile_width` columns, then the next of each.
#ifndef EDGEBLT_INPUT_TILE_H
#define EDGEBLT_INPUT_TILE_H

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace edgeblt {

// Narrow, the last tile may have fewer rows than others, and a single row is one where it lies. Wide, a tile has room
// for 16 rows, whatever it has; scales of absent ones are 0.
constexpr int64_t kNoTile = 0, kNarrowTile = 4, kWideTile = 64, kWideTileRows = 16;

// Rows of weights, and of inputs, that are read for each other at once where tiles are wide.
constexpr int64_t kWidePanel = 64, kWidePass = 64;

struct InputTile {
  const int8_t* codes;     // [columns / width, rows, width]
  const float* scales;     // [blocks, rows]
  const int32_t* sums;     // [blocks, rows]
  const int32_t* middles;  // [blocks, rows] sums times -128; null in narrow tiles
};

// Elements of 32 bits that a row takes in its tile.
inline int64_t tile_elements(int64_t blocks, int64_t block_size) {
  return padded_columns(blocks * block_size, block_size) / 4 + 3 * blocks;
}

// Elements of 32 bits of all rows' tiles.
inline int64_t tiles_elements(int64_t rows, int64_t blocks, int64_t block_size) {
  return (rows + kWideTileRows - 1) / kWideTileRows * kWideTileRows * tile_elements(blocks, block_size);
}

// `Kernels::tile_width` of levels whose tiles are narrow.
inline int64_t narrow_tile_width(int64_t, int64_t) { return kNarrowTile; }

// Where the parts of a tile lie that begins with row `row` and has room for `count`.
struct TilePlaces {
  TilePlaces(const Inputs& inputs, int64_t row, int64_t count)
      : codes(row * tile_elements(inputs.blocks, inputs.block_size)),
        sums(codes + count * (inputs.tile_width == kWideTile ? inputs.columns : inputs.blocks * inputs.block_size) / 4),
        scales(sums + count * inputs.blocks), middles(scales + count * inputs.blocks) {}
  int64_t codes, sums, scales, middles;
};

// Rows [row, row + count) of the inputs, which are a narrow tile.
inline InputTile tile_at(const Inputs& inputs, int64_t row, int64_t count) {
  if (count == 1) {
    return {inputs.codes + row * inputs.columns, inputs.scales + row * inputs.stride,
            inputs.sums + row * inputs.stride, nullptr};
  }
  const TilePlaces places(inputs, row, count);
  return {reinterpret_cast<const int8_t*>(inputs.tiles + places.codes),
          reinterpret_cast<const float*>(inputs.tiles + places.scales), inputs.tiles + places.sums, nullptr};
}

// The wide tile that begins with row `row`.
inline InputTile wide_tile_at(const Inputs& inputs, int64_t row) {
  const TilePlaces places(inputs, row, kWideTileRows);
  return {reinterpret_cast<const int8_t*>(inputs.tiles + places.codes),
          reinterpret_cast<const float*>(inputs.tiles + places.scales), inputs.tiles + places.sums,
          inputs.tiles + places.middles};
}

// Writes row `row` of rounded inputs to its tile, in `tiles`, the memory of `inputs.tiles`.
inline void add_to_tile(const Kernels& table, const Inputs& inputs, int64_t row, int32_t* tiles) {
  if (inputs.tile_width == kNoTile) return;
  const bool wide = inputs.tile_width == kWideTile;
  const int64_t of_tile = row % table.tile_rows, begin = row - of_tile, left = inputs.rows - begin;
  const int64_t count = wide ? kWideTileRows : left < table.tile_rows ? left : table.tile_rows;
  if (count == 1) return;
  const TilePlaces places(inputs, begin, count);
  const int8_t* codes = inputs.codes + row * inputs.columns;
  if (wide) {
    int8_t* place = reinterpret_cast<int8_t*>(tiles + places.codes) + of_tile * kWideTile;
    for (int64_t column = 0; column < inputs.columns; column += kWideTile, place += kWideTileRows * kWideTile) {
      std::memcpy(place, codes + column, kWideTile);
    }
  } else {
    int32_t* place = tiles + places.codes + of_tile;
    const int64_t fours = inputs.blocks * inputs.block_size / 4;
    for (int64_t i = 0; i < fours; ++i) std::memcpy(place + i * count, codes + 4 * i, sizeof *place);
  }
  for (int64_t block = 0; block < inputs.blocks; ++block) {
    const int64_t from = row * inputs.stride + block, to = block * count + of_tile;
    tiles[places.sums + to] = inputs.sums[from];
    std::memcpy(tiles + places.scales + to, inputs.scales + from, sizeof *tiles);
    if (!wide) continue;
    tiles[places.middles + to] = -128 * inputs.sums[from];
    if (left == 1) std::fill_n(tiles + places.scales + to + 1, count - of_tile - 1, 0);
  }
}

// Rows [row, row + count), which begin with a tile, or a single row.
inline Inputs some_rows(const Inputs& inputs, int64_t row, int64_t count) {
  Inputs some = inputs;
  some.rows = count;
  some.codes += row * inputs.columns;
  some.scales += row * inputs.stride;
  some.sums += row * inputs.stride;
  if (some.tiles) some.tiles += row * tile_elements(inputs.blocks, inputs.block_size);
  return some;
}

}  // namespace edgeblt

#endif
