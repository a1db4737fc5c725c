// How much work is handed to another thread at once.
#ifndef EDGEBLT_TASKS_H
#define EDGEBLT_TASKS_H

#include <algorithm>
#include <cstdint>

namespace edgeblt {

constexpr int64_t kTaskProducts = 65536;  // below this, handing work to a thread takes longer than it saves
constexpr int64_t kMostTasks = 16;

// The number of tasks that so many products are worth, at least one and at most `most`.
inline int64_t wanted_tasks(double products, int64_t most = kMostTasks) {
  return static_cast<int64_t>(std::clamp<double>(products / kTaskProducts, 1, static_cast<double>(most)));
}

// `total` in at most `most` portions of one size, a multiple of `unit`; the last may be smaller.
struct Portions {
  Portions(int64_t total, int64_t unit, int64_t most) {
    const int64_t units = (total + unit - 1) / unit, parts = std::clamp<int64_t>(most, 1, units);
    size = (units + parts - 1) / parts * unit;
    count = (total + size - 1) / size;
  }
  int64_t size, count;
};

}  // namespace edgeblt

#endif
