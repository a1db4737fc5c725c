// What the dense kernels of all levels share: where a group's scales and zero points lie, and the walk over groups of
// weights and tiles of inputs. In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_DENSE_H
#define EDGEBLT_DENSE_H

#include <utility>

#include "common.h"
#include "input_tile.h"

namespace edgeblt {
namespace {

// A kernel's products of groups [first, last) of the weights with the rows of a tile: out[m * weights.rows + n].
using MultiplyGroups = void (*)(const DenseWeights& weights, const InputTile& tile, int64_t first, int64_t last, float* out);

constexpr int64_t kAhead = 4096;  // bytes: the processor's own prefetching ends with each page of memory

// Asks for kBytes of weights that are needed `distance` bytes from here, which need not be readable.
template <int64_t kBytes>
inline __attribute__((always_inline)) void prefetch(const uint8_t* next, int64_t distance = kAhead) {
  const auto from = reinterpret_cast<uintptr_t>(next) + static_cast<uintptr_t>(distance);
  for (uintptr_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(reinterpret_cast<const void*>(from + byte), 0, 3);
}

// How far ahead to ask where the codes of `streams` groups are read side by side, then those of the next `streams`.
class AheadOfStreams {
 public:
  AheadOfStreams(int64_t group_bytes, int64_t streams)
      : bytes_(group_bytes), others_((streams - 1) * group_bytes), left_(group_bytes - kAhead), distance_(kAhead) {}

  // The distance of the next block, of so many bytes.
  int64_t next_block(int64_t bytes) {
    while (left_ <= 0) left_ += bytes_, distance_ += others_;
    left_ -= bytes;
    return distance_;
  }

 private:
  int64_t bytes_, others_, left_, distance_;
};

// Where the scales of a group's next block lie, from block `begin` on.
class ScaleCursor {
 public:
  ScaleCursor(const DenseWeights& weights, int64_t group, int64_t begin = 0)
      : times_(weights.scales.blocks_per_scale), left_(times_ - begin % times_),
        index_((group * weights.scales.per_row + begin / times_) * kGroup) {}
  int64_t index() const { return index_; }
  void next_block() {
    if (--left_) return;
    left_ = times_;
    index_ += kGroup;
  }

 private:
  int64_t times_, left_, index_;
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

// Calls a level's kernels, one for each number of rows up to kMost, for each tile of the inputs. A group's weights, once
// read, serve all of them.
template <size_t kMost>
inline void walk_groups(
    const MultiplyGroups (&kernels)[kMost], const DenseWeights& weights, const Inputs& inputs, int64_t first,
    int64_t last, float* out) {
  const int64_t begin = first / kGroup, end = (last + kGroup - 1) / kGroup, most = static_cast<int64_t>(kMost);
  const int64_t rows = inputs.rows;
  if (rows <= most) return kernels[rows - 1](weights, tile_at(inputs, 0, rows), begin, end, out);
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t row = 0; row < rows; row += most) {
      const int64_t count = rows - row < most ? rows - row : most;
      kernels[count - 1](weights, tile_at(inputs, row, count), group, group + 1, out + row * weights.rows);
    }
  }
}

}  // namespace
}  // namespace edgeblt

#endif
