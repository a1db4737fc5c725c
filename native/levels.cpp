#include "levels.h"

#include <atomic>
#include <initializer_list>

#include "edgeblt.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace edgeblt {
namespace {

bool processor_has([[maybe_unused]] Level level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The instruction sets each level's files are compiled for, see CMakeLists.txt.
  if (level == kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("popcnt");
  }
  if (level == kAvx512) {
    return processor_has(kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
  }
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  if (level == kNeon) return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#endif
  return false;
}

Level best_level() {
  for (Level level : {kAvx512, kAvx2, kNeon}) {
    if (level_available(level)) return level;
  }
  return kScalar;
}

std::atomic<int> level_in_use{-1};

}  // namespace

bool level_available(Level level) { return level == kScalar || processor_has(level); }

Level current_level() {
  int level = level_in_use.load(std::memory_order_relaxed);
  if (level < 0) {
    level = best_level();
    level_in_use.store(level, std::memory_order_relaxed);
  }
  return static_cast<Level>(level);
}

bool use_level(Level level) {
  if (!level_available(level)) return false;
  level_in_use.store(level, std::memory_order_relaxed);
  return true;
}

}  // namespace edgeblt

int edgeblt_level(void) { return edgeblt::current_level(); }

int edgeblt_level_available(int level) {
  return level >= 0 && level < edgeblt::kLevelCount && edgeblt::level_available(static_cast<edgeblt::Level>(level));
}

int edgeblt_use_level(int level) {
  return edgeblt_level_available(level) && edgeblt::use_level(static_cast<edgeblt::Level>(level));
}
