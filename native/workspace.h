// Memory that operators compute in.
#ifndef EDGEBLT_WORKSPACE_H
#define EDGEBLT_WORKSPACE_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgeblt {

// What a workspace is for: those of one purpose and type are one.
enum Purpose { kCodes, kScales, kSums, kTiles, kQueries, kLayer };

// `count` elements, 64-byte aligned. Grows, is never given back, and belongs to the calling thread: one operator runs
// in it at a time.
template <typename T, Purpose kPurpose>
T* workspace(int64_t count) {
  thread_local std::vector<T> buffer;
  constexpr size_t kSlackElements = 64 / sizeof(T);
  if (buffer.size() < static_cast<size_t>(count) + kSlackElements) {
    buffer.resize(static_cast<size_t>(count) + kSlackElements);
  }
  return buffer.data() + (-reinterpret_cast<uintptr_t>(buffer.data()) & 63) / sizeof(T);
}

}  // namespace edgeblt

#endif
