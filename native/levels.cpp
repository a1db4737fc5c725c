#include "levels.h"

#include <atomic>
#include <initializer_list>

#include "edgeblt.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace edgeblt {
namespace {

#if defined(__x86_64__)
enum Register { kEax, kEbx, kEcx, kEdx };

// A bit of the processor's features, leaf 7.
bool feature(unsigned subleaf, Register where, int bit) {
  unsigned registers[4] = {};
  if (!__get_cpuid_count(7, subleaf, registers, registers + 1, registers + 2, registers + 3)) return false;
  return registers[where] >> bit & 1;
}

// Asks Linux for the memory of the tiles, which every thread of the process has from then on.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}
#endif

// The instruction sets each level's files are compiled for, see CMakeLists.txt.
bool processor_has([[maybe_unused]] Level level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (level == kAvx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("popcnt");
  }
  if (level == kAvxVnni) return kHasAvxVnni && processor_has(kAvx2) && feature(1, kEax, 4);
  if (level == kAvx512) {
    return processor_has(kAvx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2");
  }
  if (level == kAmx) {
    return kHasAmx && processor_has(kAvx512) && feature(0, kEdx, 24) && feature(0, kEdx, 25) && tiles_permitted();
  }
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProduct = 1UL << 20, kMatrixProduct = 1UL << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  if (level == kNeon) return (getauxval(AT_HWCAP) & kDotProduct) != 0;
  if (level == kI8mm) return kHasI8mm && processor_has(kNeon) && (getauxval(AT_HWCAP2) & kMatrixProduct) != 0;
#endif
  return false;
}

// The fastest first.
Level best_level() {
  for (Level level : {kAmx, kAvx512, kAvxVnni, kAvx2, kI8mm, kNeon}) {
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
