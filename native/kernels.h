// The computations behind the operators: for every instruction level one table of functions with the same results up to
// the order of float additions, dense products to the bit. docs/kernels.md describes the layouts.
#ifndef EDGEBLT_KERNELS_H
#define EDGEBLT_KERNELS_H

#include <cstddef>
#include <cstdint>

#include "levels.h"

namespace edgeblt {

constexpr int64_t kTile = 128;     // columns of a packed tile; rows of inputs are filled up with zeros to this
constexpr int64_t kSlack = 16;     // floats a row of block values may be read beyond its blocks
constexpr int64_t kInputRun = 16;  // rows of inputs that a pass over the weights serves: they stay in the first cache

// Floats as stored: half precision or single.
struct Scales {
  const void* values;
  bool half;
  int64_t per_row;           // scales of a row
  int64_t blocks_per_scale;  // consecutive blocks that share one
};

// Rows of activations rounded to int8 in blocks: value = code * scale.
struct Inputs {
  int64_t rows, columns;  // columns: `padded_columns`, zeros beyond the matrix
  int64_t block_size, blocks;
  int64_t stride;        // elements from one row of `scales` and `sums` to the next; zeros beyond the blocks
  const int8_t* codes;   // [rows, columns], 64-byte aligned
  const float* scales;   // [rows, stride]
  const int32_t* sums;   // [rows, stride] sum of the block's codes
  const int32_t* tiles;  // the same side by side for dense products (input_tile.h); null for others
  int64_t tile_width;    // columns of a row that lie there side by side
};

constexpr int64_t kGroup = 16;  // rows of dense weights side by side: each is a 32-bit lane of a vector

// Interleaved: codes [groups, blocks, block_size * bits / 32, 16 rows, 4 bytes]. A row's four bytes hold four columns
// in 8 bits; in 4 bits eight, the first four in the low halves. A code less its zero point is the weight.
struct DenseWeights {
  int64_t rows, columns, block_size, blocks;
  int bits;
  const uint8_t* codes;
  const uint8_t* zero_points;  // [groups, blocks, 16 * bits / 8], rows 0 to 7 in the low halves; null: 2 ** (bits - 1)
  Scales scales;               // [groups, per_row, 16]

  int64_t block_bytes() const { return kGroup * block_size * bits / 8; }
};

// N:M sparse: pairs of rows, tiles of 128 columns, each tile its indices and then its values.
struct SparseWeights {
  int64_t rows, columns, block_size, blocks;
  int bits;
  int group;  // 4: two of four columns, 8: four of eight
  const uint8_t* tiles;
  Scales scales;  // of a pair's two rows in turn: [pairs, per_row, 2]
};

// Any pattern: a bit for each column, and the values of the columns whose bit is set.
struct MaskedWeights {
  int64_t rows, columns, block_size, blocks;
  int bits;
  const uint8_t* mask;     // [rows, ceil(columns / 32) * 4]
  const uint8_t* values;   // all rows' one after the other, each from a byte of its own; kMaskedPadding bytes follow
  const int32_t* offsets;  // [rows + 1] byte of `values` where a row begins
  Scales scales;
};
constexpr int64_t kMaskedPadding = 64;

enum CacheFormat : int { kFloatCache, kHalfCache, kByteCache };  // see cache_format.h

// Bytes of a slot of one head.
constexpr int64_t slot_bytes(CacheFormat format, int64_t width) {
  return format == kFloatCache ? 4 * width : format == kHalfCache ? 2 * width : width + 1;
}

// Queries, rotated, and a cache that holds them all: slot `past` + r belongs to row r of the queries. The cache is one
// page of `capacity` slots, or as many as there are; then their slots are a multiple of 64.
struct Attention {
  int64_t rows, heads, kv_heads, width, capacity, past;
  int64_t window;  // slots a row sees, its own among them; -1 for all
  float scale;
  float* queries;  // [rows, heads, width]
  CacheFormat format;
  void* keys;      // [pages, kv_heads, capacity], slots of `slot_bytes`
  void* values;    // the same
  float* out;      // [rows, heads, width]
  const int32_t* pages = nullptr;  // page of each `capacity` slots in turn; null: all are in the first

  // Where a slot of a head lies, in slots.
  int64_t place(int64_t kv_head, int64_t slot) const {
    if (!pages) return kv_head * capacity + slot;
    return (pages[slot / capacity] * kv_heads + kv_head) * capacity + slot % capacity;
  }

  // The number of slots from this one to the end of its page.
  int64_t left(int64_t slot) const { return capacity - (pages ? slot % capacity : slot); }

  int64_t first_slot(int64_t row) const {
    const int64_t slot = past + row;
    return window < 0 || slot < window ? 0 : slot - window + 1;
  }
};

// Attention of a byte to the vectors of its latent: keys [kv_heads, width, vectors], then values
// [kv_heads, vectors, width]; width is a multiple of 8.
struct LatentAttention {
  int64_t heads, kv_heads, width, vectors;
  float scale;
};

// Rows that are looked up: floats as they are stored, or codes in blocks of columns. A code less its zero point, times
// its block's scale, is the element.
struct Table {
  int64_t rows, width, block_size, blocks;
  int bits;                    // 4 or 8: codes, 16 or 32: floats
  const void* values;          // [rows, width] floats, or [rows, ceil(width * bits / 8)] bytes, the first code in the low bits
  const uint8_t* zero_points;  // [rows, ceil(blocks * bits / 8)], packed as codes; null: 2 ** (bits - 1)
  Scales scales;               // [rows, blocks]
};

struct Kernels {
  // Rows of inputs that `dense` takes side by side, and columns of each, of so many rows in blocks of this size.
  int64_t tile_rows;
  int64_t (*tile_width)(int64_t rows, int64_t block_size);
  // One row of `columns` values: codes (zeros up to `padded_columns`), and for each block its scale and sum.
  void (*quantize)(const float* values, int64_t columns, int64_t block_size, int8_t* codes, float* scales,
                   int32_t* sums);
  // The products of rows [first, last) of the weights with all rows of the inputs: out[m * weights.rows + n]. `first` is
  // a multiple of 16. Every level gives the same bits: blocks in order, each total = fma(scale of the weights * scale of
  // the inputs, exact sum, total).
  void (*dense)(const DenseWeights&, const Inputs&, int64_t first, int64_t last, float* out);
  void (*sparse)(const SparseWeights&, const Inputs&, int64_t first, int64_t last, float* out);  // first is even
  void (*masked)(const MaskedWeights&, const Inputs&, int64_t first, int64_t last, float* out);
  // Entropy in nats of softmax(logits), row by row: [rows, width] to [rows].
  void (*entropies)(const float* logits, int64_t rows, int64_t width, float* out);
  // Rows [first, last) of the queries whose heads share one head of keys.
  void (*attend)(const Attention&, int64_t kv_head, int64_t first, int64_t last);
  // Of a row's queries, keys and values [heads + 2 kv_heads, width]: the queries, rotated by the angles of the row's
  // slot, to `queries`, the keys, rotated, and the values to the cache.
  void (*store_row)(const Attention&, const float* projected, const float* cosines, const float* sines, int64_t row);
  // RMSNorm of a row, total / sqrt(mean of total ** 2 + epsilon) * weight: of `values`, or where there is an addend of
  // the sum of both, which is then written to `total`.
  void (*normalize)(const float* values, const float* addend, const float* weight, int64_t width, float epsilon,
                    float* total, float* out);
  // gate * sigmoid(gate) * up; `out` may be one of them.
  void (*gate)(const float* gate, const float* up, int64_t width, float* out);
  // The queries [bytes, heads, width] of bytes that have the same latent, and what they attend to.
  void (*attend_latent)(const LatentAttention&, const float* queries, const float* row, int64_t bytes, float* out);
  // The queries [count, heads, width] of a patch, and what they attend to: `vectors` rows of its bytes' keys and values
  // [2, kv_heads, width].
  void (*attend_bytes)(const LatentAttention&, const float* queries, const float* rows, int64_t count, float* out);
  // Adds a row of a table to `out` [width].
  void (*add_table_row)(const Table&, int64_t row, float* out);
};

void dense_scalar(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out);

// The table of an available level.
const Kernels& kernels(Level level);

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvxVnniKernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAmxKernels;
extern const Kernels kNeonKernels;
extern const Kernels kI8mmKernels;

// Columns of inputs as stored: whole tiles and whole blocks.
constexpr int64_t padded_columns(int64_t columns, int64_t block_size) {
  const int64_t unit = block_size > kTile ? block_size : kTile;
  return (columns + unit - 1) / unit * unit;
}

// Bytes of a tile of SparseWeights.
constexpr int64_t index_bytes(int group) { return group == 8 ? 48 : 32; }
constexpr int64_t tile_bytes(int group, int bits) { return index_bytes(group) + (bits == 8 ? 128 : 64); }

// Bytes of a row's mask: whole words of 32 columns.
constexpr int64_t mask_bytes(int64_t columns) { return (columns + 31) / 32 * 4; }

}  // namespace edgeblt

#endif
