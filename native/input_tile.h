// Rounded inputs side by side, as the dense kernels read them: their rows in tiles of `Kernels::tile_rows`, after those
// that a kernel reads row by row; the last tile may have fewer.
#ifndef EDGEBLT_INPUT_TILE_H
#define EDGEBLT_INPUT_TILE_H

#include <cstring>

#include "kernels.h"

namespace edgeblt {

struct InputTile {
  const int8_t* codes;   // [columns / 4, rows, 4]: four columns of each row, then the next four of each
  const float* scales;   // [blocks, rows]
  const int32_t* sums;   // [blocks, rows]
};

// Elements of 32 bits that a row takes in its tile.
inline int64_t tile_elements(int64_t blocks, int64_t block_size) { return blocks * (block_size / 4 + 2); }

// Rows [row, row + count) of the inputs, which are a tile; a single row is one where it lies.
inline InputTile tile_at(const Inputs& inputs, int64_t row, int64_t count) {
  if (count == 1) {
    return {inputs.codes + row * inputs.columns, inputs.scales + row * inputs.stride, inputs.sums + row * inputs.stride};
  }
  const int32_t* begin = inputs.tiles + row * tile_elements(inputs.blocks, inputs.block_size);
  const int32_t* sums = begin + count * inputs.blocks * inputs.block_size / 4;
  const int32_t* scales = sums + count * inputs.blocks;
  return {reinterpret_cast<const int8_t*>(begin), reinterpret_cast<const float*>(scales), sums};
}

// Writes row `row` of rounded inputs to its tile, in `tiles`, the memory of `inputs.tiles`.
inline void add_to_tile(const Kernels& table, const Inputs& inputs, int64_t row, int32_t* tiles) {
  const int64_t plain = table.plain_rows(inputs.rows, inputs.block_size);
  if (row < plain) return;
  const int64_t begin = row - (row - plain) % table.tile_rows, left = inputs.rows - begin;
  const int64_t count = left < table.tile_rows ? left : table.tile_rows;
  if (count == 1) return;
  const int64_t fours = inputs.blocks * inputs.block_size / 4;
  const int8_t* codes = inputs.codes + row * inputs.columns;
  int32_t* place = tiles + begin * tile_elements(inputs.blocks, inputs.block_size) + row - begin;
  for (int64_t i = 0; i < fours; ++i) std::memcpy(place + i * count, codes + 4 * i, sizeof *place);
  int32_t* sums = place + count * fours;
  int32_t* scales = sums + count * inputs.blocks;
  for (int64_t block = 0; block < inputs.blocks; ++block) {
    sums[block * count] = inputs.sums[row * inputs.stride + block];
    std::memcpy(scales + block * count, inputs.scales + row * inputs.stride + block, sizeof *scales);
  }
}

// Rows [row, row + count), which begin with a tile.
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
