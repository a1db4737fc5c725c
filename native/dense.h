// What the dense kernels of all levels share: where a block of a group of sixteen rows lies, and the walk over groups
// and rows of inputs. In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_DENSE_H
#define EDGEBLT_DENSE_H

#include <utility>

#include "common.h"

namespace edgeblt {
namespace {

// A kernel's products of groups [first, last) of the weights with so many rows of inputs from `row` on.
using MultiplyGroups = void (*)(
    const DenseWeights& weights, const Inputs& inputs, int64_t row, int64_t first, int64_t last, float* out);

// The index of a group's first scale for a block.
inline int64_t scale_index(const DenseWeights& weights, int64_t group, int64_t block) {
  return (group * weights.scales.per_row + block / weights.scales.blocks_per_scale) * kGroup;
}

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

// Calls a level's kernels, one for each number of rows of inputs up to kMost. More rows go in even portions, and a
// group's weights, once read, serve them all.
template <size_t kMost>
inline void walk_groups(
    const MultiplyGroups (&kernels)[kMost], const DenseWeights& weights, const Inputs& inputs, int64_t first,
    int64_t last, float* out) {
  const int64_t begin = first / kGroup, end = (last + kGroup - 1) / kGroup, most = static_cast<int64_t>(kMost);
  if (inputs.rows <= most) return kernels[inputs.rows - 1](weights, inputs, 0, begin, end, out);
  const int64_t portions = (inputs.rows + most - 1) / most, some = inputs.rows / portions, more = inputs.rows % portions;
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t portion = 0, row = 0; portion < portions; ++portion) {
      const int64_t count = some + (portion < more);
      kernels[count - 1](weights, inputs, row, group, group + 1, out);
      row += count;
    }
  }
}

}  // namespace
}  // namespace edgeblt

#endif
