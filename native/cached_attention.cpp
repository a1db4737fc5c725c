#include "cached_attention.h"

#include <algorithm>
#include <cstring>

#include "tasks.h"
#include "workspace.h"

namespace edgeblt {
namespace {

constexpr int64_t kRowUnit = 16;  // rows that are computed together

void store_all(const Call& call, const Attention& attention, const float* projected, const CacheInputs& cache) {
  const Kernels& table = kernels(current_level());
  const int64_t width = (attention.heads + 2 * attention.kv_heads) * attention.width, pairs = attention.width / 2;
  const auto *cosines = static_cast<const float*>(cache.cosines.data);
  const auto *sines = static_cast<const float*>(cache.sines.data);
  const int64_t tasks = std::min(wanted_tasks(static_cast<double>(attention.rows * width)), attention.rows);
  const int64_t portion = (attention.rows + tasks - 1) / tasks;
  call.parallel(static_cast<size_t>(tasks), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * portion;
    for (int64_t row = begin; row < std::min(attention.rows, begin + portion); ++row) {
      const int64_t angles = (attention.past + row) * pairs;
      table.store_row(attention, projected + row * width, cosines + angles, sines + angles, row);
    }
  });
}

void attend_all(const Call& call, const Attention& attention) {
  const Kernels& table = kernels(current_level());
  const int64_t rows = attention.rows, heads = attention.kv_heads, seen = attention.past + rows - attention.first_slot(0);
  const double products = static_cast<double>(rows * attention.heads * attention.width) * static_cast<double>(seen);
  const int64_t wanted = wanted_tasks(products);
  const int64_t parts = std::clamp<int64_t>(wanted / heads, 1, (rows + kRowUnit - 1) / kRowUnit);  // of the rows
  const int64_t portion = (rows + kRowUnit * parts - 1) / (kRowUnit * parts) * kRowUnit;
  const int64_t units = heads * parts, tasks = std::min(units, wanted);
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

CacheFormat CachedAttention::format(const Tensor& keys) {
  switch (keys.type) {
    case ort::kFloat16: return kHalfCache;
    case ort::kInt8: return kByteCache;
    default: return kFloatCache;
  }
}

int64_t CachedAttention::check(const CacheInputs& cache, int64_t rows) const {
  const bool is_known = cache.keys.type == ort::kFloat16 || cache.keys.type == ort::kInt8;
  require(cache.keys, "past_key", is_known ? cache.keys.type : ort::kFloat, {1, kv_heads_, -1, -1});
  const int64_t capacity = cache.keys.shape[2], width = cache.keys.shape[3] - (cache.keys.type == ort::kInt8);
  require(cache.values, "past_value", cache.keys.type, cache.keys.shape);
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
  const CacheFormat format = CachedAttention::format(cache.keys);
  const int64_t capacity = cache.keys.shape[2], width = cache.keys.shape[3] - (format == kByteCache);
  const int64_t past = *static_cast<const int32_t*>(cache.total_length.data) - rows;
  auto* keys = call.output<char>(1, cache.keys.shape);
  auto* values = call.output<char>(2, cache.keys.shape);
  keep_past(cache.keys, past * slot_bytes(format, width), capacity * slot_bytes(format, width), keys);
  keep_past(cache.values, past * slot_bytes(format, width), capacity * slot_bytes(format, width), values);
  if (!rows) return;
  float* queries = workspace<float, kQueries>(rows * heads_ * width);
  const Attention attention{rows, heads_, kv_heads_, width, capacity, past, window_, scale_, queries, format, keys,
                            values, attended};
  store_all(call, attention, projected, cache);
  attend_all(call, attention);
}

// Where past and present are not one buffer: the filled bytes of each head, `stride` from one to the next.
void CachedAttention::keep_past(const Tensor& past, int64_t filled, int64_t stride, char* present) const {
  const auto* from = static_cast<const char*>(past.data);
  if (from == present) return;
  for (int64_t head = 0; head < kv_heads_; ++head) {
    std::memcpy(present + head * stride, from + head * stride, static_cast<size_t>(filled));
  }
}

}  // namespace edgeblt
