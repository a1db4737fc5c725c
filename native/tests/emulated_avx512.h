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

// Two halves by F16C, which every processor with AVX2 has.
inline __m512 emulated_cvtph_ps(__m256i halves) {
  __m256 floats[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                      _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  __m512 result;
  std::memcpy(&result, floats, sizeof result);
  return result;
}
#define _mm512_cvtph_ps emulated_cvtph_ps

inline __m512i emulated_cvtepu8_epi32(__m128i bytes) {
  const __m256i halves[2] = {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  __m512i result;
  std::memcpy(&result, halves, sizeof result);
  return result;
}
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32

inline void emulated_mask_storeu_ps(float* out, uint16_t mask, __m512 lanes) {
  float values[16];
  std::memcpy(values, &lanes, sizeof values);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) out[i] = values[i];
  }
}
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps

#undef _mm512_madd_epi16  // SIMDe's has the arguments of the masked one
inline __m512i emulated_madd_epi16(__m512i first, __m512i second) {
  int16_t a[32], b[32];
  int32_t sums[16];
  std::memcpy(a, &first, sizeof a);
  std::memcpy(b, &second, sizeof b);
  for (int i = 0; i < 16; ++i) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  __m512i result;
  std::memcpy(&result, sums, sizeof result);
  return result;
}
#define _mm512_madd_epi16 emulated_madd_epi16

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
