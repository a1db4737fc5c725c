// The plain definition of every kernel: what the vector levels are tested against, and what runs elsewhere.
#include <cmath>

#include "attention.h"
#include "dense.h"
#include "rows.h"

namespace edgeblt {
namespace {

// The sums of a group's sixteen rows, of codes times inputs, for one block and one row of inputs.
template <int kBits>
void add_block(const uint8_t* codes, const int8_t* in, int64_t columns, int32_t* sums) {
  constexpr int64_t kColumns = 32 / kBits;  // of a row's four bytes
  for (int64_t begin = 0; begin < columns; begin += kColumns, codes += 4 * kGroup, in += kColumns) {
    for (int64_t row = 0; row < kGroup; ++row) {
      for (int64_t i = 0; i < 4; ++i) {
        const int code = codes[4 * row + i];
        sums[row] += kBits == 8 ? code * in[i] : (code & 15) * in[i] + (code >> 4) * in[4 + i];
      }
    }
  }
}

}  // namespace

void dense_scalar(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  for (int64_t group = first / kGroup; group < (last + kGroup - 1) / kGroup; ++group) {
    const uint8_t* codes = weights.codes + group * weights.blocks * weights.block_bytes();
    for (int64_t m = 0; m < inputs.rows; ++m) {
      ScaleCursor cursor(weights, group);
      float totals[kGroup] = {};
      for (int64_t block = 0; block < weights.blocks; ++block) {
        const int8_t* in = inputs.codes + m * inputs.columns + block * weights.block_size;
        int32_t sums[kGroup] = {};
        (weights.bits == 8 ? add_block<8> : add_block<4>)(
            codes + block * weights.block_bytes(), in, weights.block_size, sums);
        for (int64_t row = 0; row < kGroup; ++row) {
          sums[row] -= zero_point(weights, group, block, row) * inputs.sums[m * inputs.stride + block];
          const float scale = read_scale(weights.scales, cursor.index() + row);
          const float input_scale = inputs.scales[m * inputs.stride + block];
          totals[row] = std::fma(scale * input_scale, static_cast<float>(sums[row]), totals[row]);
        }
        cursor.next_block();
      }
      float* place = out + m * weights.rows + group * kGroup;
      std::memcpy(place, totals, static_cast<size_t>(rows_of_group(weights, group)) * sizeof *totals);
    }
  }
}

namespace {

// A value of a tile: the weight, and which column of the tile it belongs to.
struct Slot {
  int weight;
  int64_t column;
};

// Slot `slot` (0 to 31) of vector `vector` (0 to 3) of a tile: four slots of the pair's first row, four of its second,
// and so on; eight slots of a row cover 16 columns.
Slot read_slot(const uint8_t* tile, int group, int bits, int vector, int slot) {
  const uint8_t* values = tile + index_bytes(group);
  int index = tile[slot] >> (2 * vector) & 3;
  if (group == 8) index |= (tile[32 + slot % 16] >> (2 * vector + slot / 16) & 1) << 2;
  const int quad = slot % 16 / 8;  // the first or second eight columns of the slot's sixteen
  const int base = quad * 8 + (group == 4 ? slot % 4 / 2 * 4 : 0);
  int weight;
  if (bits == 8) {
    weight = static_cast<int8_t>(values[32 * vector + slot]);
  } else {
    weight = (values[32 * (vector / 2) + slot] >> (vector % 2 * 4) & 15) - 8;
  }
  return {weight, vector * 32 + slot / 16 * 16 + base + index};
}

void sparse(const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  const int64_t tiles = (weights.columns + kTile - 1) / kTile, bytes = tile_bytes(weights.group, weights.bits);
  float* scales = block_buffer<0>(2 * weights.blocks + kSlack);
  int32_t* dots = reinterpret_cast<int32_t*>(block_buffer<1>(tiles * 8 + kSlack));  // 16 columns or more a block
  for (int64_t row = first; row < last; ++row) {
    block_scales<2>(weights.scales, row / 2, weights.blocks, scales);
    const uint8_t* pair = weights.tiles + row / 2 * tiles * bytes;
    for (int64_t m = 0; m < inputs.rows; ++m) {
      const int8_t* input = inputs.codes + m * inputs.columns;
      std::memset(dots, 0, static_cast<size_t>(tiles) * 8 * sizeof *dots);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        for (int place = 0; place < 128; ++place) {
          if (place % 8 / 4 != row % 2) continue;
          const Slot slot = read_slot(pair + tile * bytes, weights.group, weights.bits, place / 32, place % 32);
          const int64_t column = tile * kTile + slot.column;
          dots[column / weights.block_size] += slot.weight * input[column];
        }
      }
      float total = 0;
      for (int64_t block = 0; block < weights.blocks; ++block) {
        const float scale = scales[2 * block + row % 2] * inputs.scales[m * inputs.stride + block];
        total += scale * static_cast<float>(dots[block]);
      }
      out[m * weights.rows + row] = total;
    }
  }
}

void masked(const MaskedWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  float* scales = block_buffer<0>(weights.blocks + kSlack);
  for (int64_t row = first; row < last; ++row) {
    block_scales(weights.scales, row, weights.blocks, scales);
    const uint8_t* mask = weights.mask + row * mask_bytes(weights.columns);
    const uint8_t* values = weights.values + weights.offsets[row];
    for (int64_t m = 0; m < inputs.rows; ++m) {
      const int8_t* input = inputs.codes + m * inputs.columns;
      float total = 0;
      int64_t next = 0;
      for (int64_t block = 0; block < weights.blocks; ++block) {
        int32_t dot = 0;
        const int64_t begin = block * weights.block_size;
        for (int64_t column = begin; column < begin + weights.block_size && column < weights.columns; ++column) {
          if (!(mask[column / 8] >> (column % 8) & 1)) continue;
          const int weight = weights.bits == 8 ? static_cast<int8_t>(values[next])
                                               : (values[next / 2] >> (next % 2 * 4) & 15) - 8;
          dot += weight * input[column];
          ++next;
        }
        total += scales[block] * inputs.scales[m * inputs.stride + block] * static_cast<float>(dot);
      }
      out[m * weights.rows + row] = total;
    }
  }
}

int64_t no_tile_width(int64_t, int64_t) { return kNoTile; }

}  // namespace

const Kernels kScalarKernels = {16, no_tile_width, quantize_row, dense_scalar, sparse, masked, entropy_rows, attend_rows<4>, store_row,
                                normalize_row<8>, gate_row<8>, attend_vectors, attend_patch, add_row};

}  // namespace edgeblt
