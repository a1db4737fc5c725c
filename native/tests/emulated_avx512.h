// AVX-512 by SIMDe (Debian: libsimde-dev), so that its kernels can be tested on any machine; and what SIMDe lacks.
#ifndef EDGEBLT_EMULATED_AVX512_H
#define EDGEBLT_EMULATED_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <cstring>

inline __m512 emulated_cvtepi32_ps(__m512i lanes) {
  int32_t integers[16];
  float floats[16];
  std::memcpy(integers, &lanes, sizeof integers);
  for (int i = 0; i < 16; ++i) floats[i] = static_cast<float>(integers[i]);
  __m512 result;
  std::memcpy(&result, floats, sizeof result);
  return result;
}
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps

inline __m512i emulated_expandloadu_epi8(uint64_t mask, const void* bytes) {
  const auto* next = static_cast<const uint8_t*>(bytes);
  uint8_t places[64] = {};
  for (int i = 0; i < 64; ++i) {
    if (mask >> i & 1) places[i] = *next++;
  }
  __m512i result;
  std::memcpy(&result, places, sizeof result);
  return result;
}
#define _mm512_maskz_expandloadu_epi8 emulated_expandloadu_epi8

#endif
