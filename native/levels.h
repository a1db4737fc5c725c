// Which instructions the kernels use: the best the processor has, or less where EDGEBLT_NATIVE says so.
#ifndef EDGEBLT_LEVELS_H
#define EDGEBLT_LEVELS_H

namespace edgeblt {

enum Level : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kNeon = 3 };

// Every level has a name, whatever the processor.
constexpr const char* kLevelNames[] = {"scalar", "avx2", "avx512", "neon"};
constexpr int kLevelCount = 4;

// Whether this build has kernels of `level` and this processor can run them.
bool level_available(Level level);

// The level in use: the best available one, unless `use_level` chose another.
Level current_level();

// Use `level` from now on. False, and nothing changes, where it is not available.
bool use_level(Level level);

}  // namespace edgeblt

#endif
