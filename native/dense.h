// What the dense kernels of all levels share: rows of inputs side by side as the kernels read them, and the walk over
// groups of weights and rows of inputs. In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_DENSE_H
#define EDGEBLT_DENSE_H

#include <utility>

#include "common.h"

namespace edgeblt {
namespace {

// Some rows of inputs side by side: four columns of each row, then the next four of each.
struct InputTile {
  const int8_t* codes;   // [columns / 4, rows, 4]
  const float* scales;   // [blocks, rows]
  const int32_t* sums;   // [blocks, rows]
};

// A kernel's products of groups [first, last) of the weights with the rows of a tile: out[m * weights.rows + n].
using MultiplyGroups = void (*)(const DenseWeights& weights, const InputTile& tile, int64_t first, int64_t last, float* out);

// Asks for the weights needed a page from here: the processor's own prefetching ends with each page of memory. `next`
// need not be readable there.
template <int64_t kBytes>
inline __attribute__((always_inline)) void prefetch(const uint8_t* next) {
  constexpr uintptr_t kAhead = 4096;
  for (uintptr_t byte = 0; byte < kBytes; byte += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(next) + kAhead + byte), 0, 3);
  }
}

// Where the scales of a group's next block lie.
class ScaleCursor {
 public:
  ScaleCursor(const DenseWeights& weights, int64_t group)
      : index_(group * weights.scales.per_row * kGroup), times_(weights.scales.blocks_per_scale), left_(times_) {}
  int64_t index() const { return index_; }
  void next_block() {
    if (--left_) return;
    left_ = times_;
    index_ += kGroup;
  }

 private:
  int64_t index_, times_, left_;
};

// The zero point of one of a group's rows, or the middle of the codes.
inline int zero_point(const DenseWeights& weights, int64_t group, int64_t block, int64_t row) {
  const int64_t index = group * weights.blocks + block;
  if (!weights.zero_points) return 1 << (weights.bits - 1);
  if (weights.bits == 8) return weights.zero_points[index * kGroup + row];
  return weights.zero_points[index * kGroup / 2 + row % 8] >> (row / 8 * 4) & 15;
}

// Rows of a group that the matrix has.
inline int64_t rows_of_group(const DenseWeights& weights, int64_t group) {
  const int64_t left = weights.rows - group * kGroup;
  return left < kGroup ? left : kGroup;
}

template <typename T>
inline void transpose(const T* in, int64_t rows, int64_t stride, int64_t columns, T* out) {
  for (int64_t m = 0; m < rows; ++m, in += stride) {
    for (int64_t column = 0; column < columns; ++column) out[column * rows + m] = in[column];
  }
}

// Elements of 32 bits that tiles of all rows take.
inline int64_t tile_size(const DenseWeights& weights, int64_t rows) {
  return rows * weights.blocks * (weights.block_size / 4 + 2);
}

// Rows [row, row + count) of the inputs as a tile, in `buffer` of `tile_size`; a single row is one where it lies.
inline InputTile make_tile(
    const DenseWeights& weights, const Inputs& inputs, int64_t row, int64_t count, float* buffer) {
  const int8_t* codes = inputs.codes + row * inputs.columns;
  const float* scales = inputs.scales + row * inputs.stride;
  const int32_t* sums = inputs.sums + row * inputs.stride;
  if (count == 1) return {codes, scales, sums};
  const int64_t fours = weights.blocks * weights.block_size / 4, size = count * weights.blocks;
  auto* tile_codes = reinterpret_cast<int32_t*>(buffer);
  auto* tile_sums = tile_codes + count * fours;
  float* tile_scales = buffer + count * fours + size;
  transpose(reinterpret_cast<const int32_t*>(codes), count, inputs.columns / 4, fours, tile_codes);
  transpose(sums, count, inputs.stride, weights.blocks, tile_sums);
  transpose(scales, count, inputs.stride, weights.blocks, tile_scales);
  return {reinterpret_cast<const int8_t*>(tile_codes), tile_scales, tile_sums};
}

// Calls a level's kernels, one for each number of rows up to kMost. More rows go in even portions, and a group's
// weights, once read, serve them all.
template <size_t kMost>
inline void walk_groups(
    const MultiplyGroups (&kernels)[kMost], const DenseWeights& weights, const Inputs& inputs, int64_t first,
    int64_t last, float* out) {
  const int64_t begin = first / kGroup, end = (last + kGroup - 1) / kGroup, most = static_cast<int64_t>(kMost);
  const int64_t rows = inputs.rows;
  float* buffer = rows == 1 ? nullptr : block_buffer<4>(tile_size(weights, rows));
  if (rows <= most) {
    return kernels[rows - 1](weights, make_tile(weights, inputs, 0, rows, buffer), begin, end, out);
  }
  const int64_t portions = (rows + most - 1) / most, some = rows / portions, more = rows % portions;
  thread_local std::vector<InputTile> tiles;
  tiles.clear();
  for (int64_t portion = 0, row = 0; portion < portions; ++portion) {
    const int64_t count = some + (portion < more);
    tiles.push_back(make_tile(weights, inputs, row, count, buffer + tile_size(weights, row)));
    row += count;
  }
  for (int64_t group = begin; group < end; ++group) {
    float* place = out;
    for (int64_t portion = 0; portion < portions; ++portion) {
      const int64_t count = some + (portion < more);
      kernels[count - 1](weights, tiles[static_cast<size_t>(portion)], group, group + 1, place);
      place += count * weights.rows;
    }
  }
}

}  // namespace
}  // namespace edgeblt

#endif
