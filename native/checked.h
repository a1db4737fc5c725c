// Arithmetic on sizes that cannot wrap: what a model says of itself is not believed until it was looked at.
#ifndef EDGEBLT_CHECKED_H
#define EDGEBLT_CHECKED_H

#include <cstdint>
#include <initializer_list>
#include <stdexcept>

namespace edgeblt {

constexpr int64_t kMostSize = (int64_t{1} << 31) - 1;   // of a dimension that an attribute gives
constexpr int64_t kMostHeads = int64_t{1} << 20;        // of heads, of a head's elements, and of a latent's vectors
constexpr int64_t kMostOffset = int64_t{1} << 40;       // within a row of latents
constexpr int64_t kMostPosition = int64_t{1} << 62;     // in a text; what is added to it is less

struct SizeError : std::overflow_error {
  SizeError() : std::overflow_error("its sizes together are more than 64 bits hold; export the model again") {}
};

// Raises SizeError. 0 where one of them is, whatever the others are.
inline int64_t product_of(std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes) {
    if (size == 0) return 0;
  }
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) throw SizeError();
  }
  return product;
}

// Raises SizeError.
inline int64_t sum_of(std::initializer_list<int64_t> sizes) {
  int64_t sum = 0;
  for (const int64_t size : sizes) {
    if (__builtin_add_overflow(sum, size, &sum)) throw SizeError();
  }
  return sum;
}

}  // namespace edgeblt

#endif
