// Which instructions the kernels use: the best the processor has, or less where EDGEBLT_NATIVE says so.
#ifndef EDGEBLT_LEVELS_H
#define EDGEBLT_LEVELS_H

namespace edgeblt {

enum Level : int { kScalar = 0, kAvx2 = 1, kAvxVnni = 2, kAvx512 = 3, kAmx = 4, kNeon = 5, kI8mm = 6 };

// Every level has a name, whatever the processor.
constexpr const char* kLevelNames[] = {"scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "i8mm"};
constexpr int kLevelCount = 7;

// An old compiler may not know the newest instructions: CMakeLists.txt finds out.
#if defined(EDGEBLT_NO_AVXVNNI)
constexpr bool kHasAvxVnni = false;
#else
constexpr bool kHasAvxVnni = true;
#endif
#if defined(EDGEBLT_NO_AMX)
constexpr bool kHasAmx = false;
#else
constexpr bool kHasAmx = true;
#endif
#if defined(EDGEBLT_NO_I8MM)
constexpr bool kHasI8mm = false;
#else
constexpr bool kHasI8mm = true;
#endif

// Whether this build has kernels of `level` and this processor can run them.
bool level_available(Level level);

// The level in use: the best available one, unless `use_level` chose another.
Level current_level();

// Use `level` from now on. False, and nothing changes, where it is not available.
bool use_level(Level level);

}  // namespace edgeblt

#endif
