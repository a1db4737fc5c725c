// Causal attention over a cache that is written in place: what WindowAttention is, and layers have in them.
#ifndef EDGEBLT_CACHED_ATTENTION_H
#define EDGEBLT_CACHED_ATTENTION_H

#include "kernels.h"
#include "operator.h"

namespace edgeblt {

// Types of the caches that there are: an operator is registered once for each.
constexpr ort::ElementType kCacheTypes[] = {ort::kFloat, ort::kFloat16, ort::kInt8};

// make(type) for each.
template <typename Make>
std::vector<Operator> for_caches(const Make& make) {
  std::vector<Operator> made;
  for (const ort::ElementType type : kCacheTypes) made.push_back(make(type));
  return made;
}

inline std::vector<const Operator*> addresses(const std::vector<Operator>& operators) {
  std::vector<const Operator*> places;
  for (const Operator& op : operators) places.push_back(&op);
  return places;
}

// Inputs: a cache, how many of its slots are filled in the end, and the angles of all.
struct CacheInputs {
  Tensor keys, values, total_length, cosines, sines;
};

class CachedAttention {
 public:
  // Reads the attributes num_heads, kv_num_heads, window and scale; raises OperatorError.
  explicit CachedAttention(const Node& node);

  // Floats of a row of queries, keys and values side by side, for heads of `width`.
  int64_t projected_width(int64_t width) const { return (heads_ + 2 * kv_heads_) * width; }
  int64_t attended_width(int64_t width) const { return heads_ * width; }

  // Raises OperatorError for a cache that so many more rows do not fit. Gives the width of its heads.
  int64_t check(const CacheInputs& cache, int64_t rows) const;

  // Writes the rows' keys and values to the cache, outputs 1 and 2 of the operator, and what its queries, rotated,
  // attend to: [rows, attended_width].
  void run(const Call& call, const CacheInputs& cache, int64_t rows, const float* projected, float* attended) const;

 private:
  static CacheFormat format(const Tensor& keys);
  void keep_past(const Tensor& past, int64_t filled, int64_t stride, char* present) const;

  int64_t heads_, kv_heads_, window_;
  float scale_;
};

}  // namespace edgeblt

#endif
