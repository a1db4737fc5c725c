#include "cached_attention.h"

#include <algorithm>
#include <cstring>

#include "tasks.h"
#include "workspace.h"

namespace edgeblt {
namespace {

constexpr int64_t kRowUnit = 16;  // rows that are computed together

constexpr int64_t kTileSlots = 64;  // those of attention.h: a tile lies in one page

// Some rows of a run, for one head of keys.
struct Unit {
  const Attention* attention;
  int64_t kv_head, first, last;
};

double products_of(const Attention& attention) {
  const int64_t seen = attention.past + attention.rows - attention.first_slot(0);
  return static_cast<double>(attention.rows * attention.heads * attention.width) * static_cast<double>(seen);
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
  require(cache.keys, "past_key", is_known ? cache.keys.type : ort::kFloat, {-1, kv_heads_, -1, -1});
  const int64_t capacity = cache.keys.shape[2], width = cache.keys.shape[3] - (cache.keys.type == ort::kInt8);
  require(cache.values, "past_value", cache.keys.type, cache.keys.shape);
  require(cache.total_length, "total_length", ort::kInt32, {1});
  require(cache.cosines, "cosines", ort::kFloat, {-1, width / 2});
  require(cache.sines, "sines", ort::kFloat, cache.cosines.shape);
  if (width < 8 || width % 8 || width > kMostHeads) {
    throw OperatorError("past_key is " + describe(cache.keys.shape) + "; heads have 8 to " +
                        std::to_string(kMostHeads) + " elements, a multiple of 8");
  }
  if (!cache.is_single()) {
    check_places(cache, rows);
    return width;
  }
  const int64_t total = *static_cast<const int32_t*>(cache.total_length.data);
  if (cache.keys.shape[0] != 1 || rows > total || total < 0 || total > capacity || total > cache.cosines.shape[0]) {
    throw OperatorError(std::to_string(rows) + " positions that end at " + std::to_string(total) +
                        " do not fit a cache of " + describe(cache.keys.shape) + "; open the model again");
  }
  return width;
}

// Raises OperatorError where a row's slot, an earlier one that it may attend to, or its angles do not exist.
void CachedAttention::check_places(const CacheInputs& cache, int64_t rows) const {
  require(cache.places, "places", ort::kInt32, {rows, 3});
  require(cache.pages, "pages", ort::kInt32, {-1, -1});
  const int64_t slots = cache.keys.shape[2], columns = cache.pages.shape[1];
  if (slots < 1 || (columns > 1 && slots % kTileSlots)) {
    throw OperatorError("pages of " + std::to_string(slots) + " slots are no multiple of " + std::to_string(kTileSlots) +
                        "; open the model again");
  }
  const auto* place = static_cast<const int32_t*>(cache.places.data);
  for (int64_t row = 0; row < rows; ++row, place += 3) {
    const int64_t sequence = place[0], slot = place[1], angle = place[2];
    bool fits = sequence >= 0 && sequence < cache.pages.shape[0] && slot >= 0 && slot / slots < columns && angle >= 0 &&
                angle < cache.cosines.shape[0];
    const auto* pages = static_cast<const int32_t*>(cache.pages.data) + (fits ? sequence * columns : 0);
    const int64_t first = window_ < 0 || slot < window_ ? 0 : slot - window_ + 1;
    for (int64_t page = first / slots; fits && page <= slot / slots; ++page) {
      fits = pages[page] >= 0 && pages[page] < cache.keys.shape[0];
    }
    if (!fits) {
      throw OperatorError("row " + std::to_string(row) + " at slot " + std::to_string(slot) + " of sequence " +
                          std::to_string(sequence) + " does not fit a cache of " + describe(cache.keys.shape) +
                          "; open the model again");
    }
  }
}

void CachedAttention::find_runs(const CacheInputs& cache, const Attention& all, std::vector<Run>& runs) const {
  runs.clear();
  if (cache.is_single()) return runs.push_back({all, 0, nullptr});
  const auto *places = static_cast<const int32_t*>(cache.places.data), *pages = static_cast<const int32_t*>(cache.pages.data);
  for (int64_t row = 0, next; row < all.rows; row = next) {
    const int32_t* place = places + 3 * row;
    for (next = row + 1; next < all.rows; ++next) {
      const int32_t* other = places + 3 * next;
      if (other[0] != place[0] || other[1] != place[1] + (next - row)) break;
    }
    Attention some = all;
    some.rows = next - row;
    some.past = place[1];
    some.pages = pages + place[0] * cache.pages.shape[1];
    some.queries += row * all.heads * all.width;
    some.out += row * all.heads * all.width;
    runs.push_back({some, row, place});
  }
}

void CachedAttention::store(
    const Call& call, const CacheInputs& cache, const std::vector<Run>& runs, const float* projected) {
  const Kernels& table = kernels(current_level());
  const Attention& any = runs.front().attention;
  const int64_t width = (any.heads + 2 * any.kv_heads) * any.width, pairs = any.width / 2;
  const int64_t rows = runs.back().first + runs.back().attention.rows;
  const auto *cosines = static_cast<const float*>(cache.cosines.data);
  const auto *sines = static_cast<const float*>(cache.sines.data);
  const Portions portions(rows, 1, wanted_tasks(static_cast<double>(rows * width)));
  call.parallel(static_cast<size_t>(portions.count), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * portions.size, end = std::min(rows, begin + portions.size);
    for (const Run& run : runs) {
      const int64_t last = std::min(end, run.first + run.attention.rows);
      for (int64_t row = std::max(begin, run.first); row < last; ++row) {
        const int64_t own = row - run.first, angle = run.places ? run.places[3 * own + 2] : run.attention.past + own;
        table.store_row(run.attention, projected + row * width, cosines + angle * pairs, sines + angle * pairs, own);
      }
    }
  });
}

void CachedAttention::attend(const Call& call, const std::vector<Run>& runs) {
  const Kernels& table = kernels(current_level());
  thread_local std::vector<Unit> kept;
  std::vector<Unit>& units = kept;  // this thread's, for all that work on it
  units.clear();
  double products = 0;
  for (const Run& run : runs) products += products_of(run.attention);
  const int64_t wanted = wanted_tasks(products);
  for (const Run& run : runs) {
    const int64_t rows = run.attention.rows, heads = run.attention.kv_heads;
    const Portions portions(rows, kRowUnit, wanted / heads);
    for (int64_t unit = 0; unit < heads * portions.count; ++unit) {
      const int64_t first = unit % portions.count * portions.size;
      units.push_back({&run.attention, unit / portions.count, first, std::min(rows, first + portions.size)});
    }
  }
  const int64_t count = static_cast<int64_t>(units.size()), tasks = std::min(count, wanted);
  call.parallel(static_cast<size_t>(tasks), [&](size_t task) {
    for (auto index = static_cast<int64_t>(task); index < count; index += tasks) {
      const Unit& unit = units[static_cast<size_t>(index)];
      table.attend(*unit.attention, unit.kv_head, unit.first, unit.last);
    }
  });
}

void CachedAttention::run(
    const Call& call, const CacheInputs& cache, int64_t rows, const float* projected, float* attended) const {
  const CacheFormat format = CachedAttention::format(cache.keys);
  const int64_t capacity = cache.keys.shape[2], width = cache.keys.shape[3] - (format == kByteCache);
  const int64_t past = cache.is_single() ? *static_cast<const int32_t*>(cache.total_length.data) - rows : capacity;
  auto* keys = call.output<char>(1, cache.keys.shape);
  auto* values = call.output<char>(2, cache.keys.shape);
  keep_past(cache.keys, past * slot_bytes(format, width), capacity * slot_bytes(format, width), keys);
  keep_past(cache.values, past * slot_bytes(format, width), capacity * slot_bytes(format, width), values);
  if (!rows) return;
  float* queries = workspace<float, kQueries>(rows * heads_ * width);
  thread_local std::vector<Run> kept;
  std::vector<Run>& runs = kept;
  find_runs(cache, {rows, heads_, kv_heads_, width, capacity, past, window_, scale_, queries, format, keys, values, attended},
            runs);
  store(call, cache, runs, projected);
  attend(call, runs);
}

// Where past and present are not one buffer: the filled bytes of each head, `stride` from one to the next.
void CachedAttention::keep_past(const Tensor& past, int64_t filled, int64_t stride, char* present) const {
  const auto* from = static_cast<const char*>(past.data);
  if (from == present) return;
  for (int64_t head = 0; head < past.shape[0] * kv_heads_; ++head) {
    std::memcpy(present + head * stride, from + head * stride, static_cast<size_t>(filled));
  }
}

}  // namespace edgeblt
