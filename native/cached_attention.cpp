#include "cached_attention.h"

#include <algorithm>
#include <cstring>

#include "tasks.h"
#include "workspace.h"

namespace edgeblt {
namespace {

struct Angles {
  const float *cosines, *sines;
  int64_t pairs;

  // Neighbours turned by the angles of a slot.
  void rotate(const float* in, int64_t slot, float* out) const {
    const float *cosine = cosines + slot * pairs, *sine = sines + slot * pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float x = in[2 * i], y = in[2 * i + 1];
      out[2 * i] = x * cosine[i] - y * sine[i];
      out[2 * i + 1] = x * sine[i] + y * cosine[i];
    }
  }
};

void attend_all(const Call& call, const Attention& attention) {
  const Kernels& table = kernels(current_level());
  const int64_t rows = attention.rows, seen = attention.past + rows - attention.first_slot(0);
  const double products = static_cast<double>(rows * attention.heads * attention.width) * static_cast<double>(seen);
  const int64_t wanted = wanted_tasks(products);
  const int64_t parts = std::clamp<int64_t>(wanted / attention.heads, 1, (rows + 3) / 4);  // of the rows
  const int64_t portion = (rows + 4 * parts - 1) / (4 * parts) * 4;
  const int64_t units = attention.heads * parts, tasks = std::min(units, wanted);
  call.parallel(static_cast<size_t>(tasks), [&](size_t task) {
    for (auto unit = static_cast<int64_t>(task); unit < units; unit += tasks) {
      const int64_t first = unit % parts * portion;
      table.attend(attention, unit / parts, first, std::min(rows, first + portion));
    }
  });
}

}  // namespace

CachedAttention::CachedAttention(const Node& node)
    : heads_(node.attribute("num_heads", 1, kMostHeads)), kv_heads_(node.attribute("kv_num_heads", 1, kMostHeads)),
      window_(node.attribute("window", -1, INT64_MAX)), scale_(node.float_attribute("scale")) {
  if (heads_ % kv_heads_) {
    throw OperatorError(std::to_string(heads_) + " heads do not share " + std::to_string(kv_heads_) +
                        " of keys; export the model again");
  }
  if (window_ == 0) throw OperatorError("window is 0; use 1 or more, or -1 for none");
  window_ = std::min(window_, kMostSize);  // a cache has no more slots
}

int64_t CachedAttention::check(const CacheInputs& cache, int64_t rows) const {
  require(cache.keys, "past_key", ort::kFloat, {1, kv_heads_, -1, -1});
  const int64_t capacity = cache.keys.shape[2], width = cache.keys.shape[3];
  require(cache.values, "past_value", ort::kFloat, cache.keys.shape);
  require(cache.total_length, "total_length", ort::kInt32, {1});
  require(cache.cosines, "cosines", ort::kFloat, {-1, width / 2});
  require(cache.sines, "sines", ort::kFloat, cache.cosines.shape);
  if (width < 8 || width % 8 || width > kMostHeads) {
    throw OperatorError("past_key is " + describe(cache.keys.shape) + "; heads have 8 to " +
                        std::to_string(kMostHeads) + " elements, a multiple of 8");
  }
  const int64_t total = *static_cast<const int32_t*>(cache.total_length.data);
  if (rows > total || total < 0 || total > capacity || total > cache.cosines.shape[0]) {
    throw OperatorError(std::to_string(rows) + " positions that end at " + std::to_string(total) +
                        " do not fit a cache of " + describe(cache.keys.shape) + "; open the model again");
  }
  return width;
}

void CachedAttention::run(
    const Call& call, const CacheInputs& cache, int64_t rows, const float* projected, float* attended) const {
  const int64_t capacity = cache.keys.shape[2], width = cache.keys.shape[3];
  const int64_t past = *static_cast<const int32_t*>(cache.total_length.data) - rows;
  auto* keys = call.output<float>(1, cache.keys.shape);
  auto* values = call.output<float>(2, cache.keys.shape);
  keep_past(cache.keys, past, keys);
  keep_past(cache.values, past, values);
  if (!rows) return;
  float* queries = workspace<float, kQueries>(rows * heads_ * width);
  const Angles angles{static_cast<const float*>(cache.cosines.data), static_cast<const float*>(cache.sines.data),
                      width / 2};
  for (int64_t row = 0; row < rows; ++row, projected += projected_width(width)) {
    for (int64_t head = 0; head < heads_; ++head) {
      angles.rotate(projected + head * width, past + row, queries + (row * heads_ + head) * width);
    }
    for (int64_t head = 0; head < kv_heads_; ++head) {
      const int64_t slot = (head * capacity + past + row) * width;
      angles.rotate(projected + (heads_ + head) * width, past + row, keys + slot);
      std::memcpy(values + slot, projected + (heads_ + kv_heads_ + head) * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  }
  attend_all(call, {rows, heads_, kv_heads_, width, capacity, past, window_, scale_, queries, keys, values, attended});
}

// Where past and present are not one buffer.
void CachedAttention::keep_past(const Tensor& past, int64_t slots, float* present) const {
  const auto* from = static_cast<const float*>(past.data);
  if (from == present) return;
  const int64_t stride = past.shape[2] * past.shape[3];
  for (int64_t head = 0; head < kv_heads_; ++head) {
    std::memcpy(present + head * stride, from + head * stride,
                static_cast<size_t>(slots * past.shape[3]) * sizeof(float));
  }
}

}  // namespace edgeblt
