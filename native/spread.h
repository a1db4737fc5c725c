// The table by which masked kernels without an expanding load put stored values in their places.
#ifndef EDGEBLT_SPREAD_H
#define EDGEBLT_SPREAD_H

#include <cstdint>

namespace edgeblt {
namespace {

// Shuffles by mask byte: place i takes the value whose number is the count of bits below i; a place without a bit takes
// 0, as its number is 0x80 or, with up to 8 added, little more.
struct Spread {
  alignas(64) uint8_t places[256][8];
  alignas(64) uint8_t begin[9][16];  // by the bits of the lower byte: what that adds to the upper one's numbers
};

constexpr Spread make_spread() {
  Spread spread{};
  for (int mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (int place = 0; place < 8; ++place) {
      const bool set = mask >> place & 1;
      spread.places[mask][place] = set ? next : 0x80;
      next = static_cast<uint8_t>(next + set);
    }
  }
  for (int bits = 0; bits <= 8; ++bits) {
    for (int place = 8; place < 16; ++place) spread.begin[bits][place] = static_cast<uint8_t>(bits);
  }
  return spread;
}

constexpr Spread kSpread = make_spread();

}  // namespace
}  // namespace edgeblt

#endif
