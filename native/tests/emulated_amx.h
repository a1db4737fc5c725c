// AMX's tiles in plain C++, so that their kernel can be tested on any machine: what it uses of the instructions.
#ifndef EDGEBLT_EMULATED_AMX_H
#define EDGEBLT_EMULATED_AMX_H

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace edgeblt {
namespace {

struct EmulatedTile {
  int64_t rows = 0, row_bytes = 0;
  alignas(64) int8_t bytes[16][64] = {};
};

thread_local EmulatedTile emulated_tiles[8];

inline void emulated_loadconfig(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  for (int tile = 0; tile < 8; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, sizeof row_bytes);
    emulated_tiles[tile] = EmulatedTile();
    emulated_tiles[tile].row_bytes = row_bytes;
    emulated_tiles[tile].rows = bytes[48 + tile];
  }
}

inline void emulated_loadd(int tile, const void* base, int64_t stride) {
  EmulatedTile& to = emulated_tiles[tile];
  for (int64_t row = 0; row < to.rows; ++row) {
    std::memcpy(to.bytes[row], static_cast<const int8_t*>(base) + row * stride, static_cast<size_t>(to.row_bytes));
  }
}

inline void emulated_stored(int tile, void* base, int64_t stride) {
  const EmulatedTile& from = emulated_tiles[tile];
  for (int64_t row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<int8_t*>(base) + row * stride, from.bytes[row], static_cast<size_t>(from.row_bytes));
  }
}

// Bytes of `Weight`, signed or not, times signed ones.
template <typename Weight>
inline void emulated_dot_products(int sums, int first, int second) {
  EmulatedTile& to = emulated_tiles[sums];
  const EmulatedTile &a = emulated_tiles[first], &b = emulated_tiles[second];
  for (int64_t row = 0; row < to.rows; ++row) {
    for (int64_t column = 0; column < to.row_bytes / 4; ++column) {
      int32_t sum;
      std::memcpy(&sum, &to.bytes[row][4 * column], sizeof sum);
      for (int64_t i = 0; i < a.row_bytes; ++i) {
        sum += a.bytes[row][i] * static_cast<Weight>(b.bytes[i / 4][4 * column + i % 4]);
      }
      std::memcpy(&to.bytes[row][4 * column], &sum, sizeof sum);
    }
  }
}

}  // namespace
}  // namespace edgeblt

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbsud
#define _tile_loadconfig emulated_loadconfig
#define _tile_release() static_cast<void>(0)
#define _tile_loadd emulated_loadd
#define _tile_stored emulated_stored
#define _tile_dpbssd emulated_dot_products<int8_t>
#define _tile_dpbsud emulated_dot_products<uint8_t>
#define _tile_zero(tile) std::memset(emulated_tiles[tile].bytes, 0, sizeof emulated_tiles[tile].bytes)

#endif
