// Reading of memory at the rate that one core has, for measurements: four streams, as kernels with few rows have.
#include <cstdint>
#include <cstring>

#include "edgeblt.h"

unsigned long long edgeblt_read_memory(const void* bytes, size_t count) {
  constexpr size_t kStreams = 4, kLine = 64, kWords = kLine / sizeof(uint64_t);
  const auto* from = static_cast<const unsigned char*>(bytes);
  const size_t stream = count / kStreams / kLine * kLine;
  uint64_t sums[kWords] = {};
  const auto add = [&](const unsigned char* line) {
    uint64_t words[kWords];
    std::memcpy(words, line, kLine);
    for (size_t i = 0; i < kWords; ++i) sums[i] += words[i];
  };
  for (size_t byte = 0; byte < stream; byte += kLine) {
    for (size_t i = 0; i < kStreams; ++i) add(from + i * stream + byte);
  }
  size_t byte = kStreams * stream;
  for (; byte + kLine <= count; byte += kLine) add(from + byte);
  uint64_t sum = 0;
  for (uint64_t words : sums) sum += words;
  for (; byte < count; ++byte) sum += static_cast<uint64_t>(from[byte]) << byte % sizeof(uint64_t) * 8;
  return sum;
}
