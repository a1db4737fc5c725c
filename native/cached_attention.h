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

// Inputs: a cache of pages, and the angles by which queries and keys are rotated. Rows of one sequence, consecutive, have
// its only page, of which so many slots are filled in the end, and the angles of their slots. Rows of several sequences
// say in `places` [rows, 3] which sequence, slot and angles are theirs; `pages` [sequences, most pages] has each
// sequence's pages in the order of its slots. For one sequence both are absent, or `places` has no rows.
struct CacheInputs {
  Tensor keys, values, total_length, cosines, sines, places, pages;

  bool is_single() const { return !places || places.shape[0] == 0; }
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
  // Rows that follow each other in a sequence, as one attention with its part of queries and results.
  struct Run {
    Attention attention;
    int64_t first;          // row
    const int32_t* places;  // of its rows; null: the angles are those of the slots
  };

  static CacheFormat format(const Tensor& keys);
  void check_places(const CacheInputs& cache, int64_t rows) const;
  void find_runs(const CacheInputs& cache, const Attention& all, std::vector<Run>& runs) const;
  static void store(const Call& call, const CacheInputs& cache, const std::vector<Run>& runs, const float* projected);
  static void attend(const Call& call, const std::vector<Run>& runs);
  void keep_past(const Tensor& past, int64_t filled, int64_t stride, char* present) const;

  int64_t heads_, kv_heads_, window_;
  float scale_;
};

}  // namespace edgeblt

#endif
