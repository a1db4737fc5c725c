// What the dense AVX2 kernels do with one step: 128 bytes of a row of weights times the inputs of these columns. The sums
// of every block end up in lanes of one vector of integers, so that scales and zero points cost a few instructions for
// eight blocks.
#ifndef EDGEBLT_DENSE_AVX2_H
#define EDGEBLT_DENSE_AVX2_H

#include "avx2.h"

namespace edgeblt {
namespace {

// How a step is laid out. Lanes beyond a vector's blocks repeat them: the blocks' sums come in two or more parts.
template <int kBits, int kBlock, bool kOffsets>
struct Form {
  static constexpr int kBytes = 128;                                    // of codes
  static constexpr int kColumns = kBytes * 8 / kBits;
  static constexpr int kVectors = kColumns / kBlock > 8 ? 2 : 1;        // of sums
  static constexpr int kBlocks = kBlock > kColumns ? 1 : kColumns / kBlock / kVectors;  // of a vector
  static constexpr int kSpan = kBlock > kColumns ? kBlock / kColumns : 1;               // vectors of a block
  // A row of inputs has for each step its codes, the scales of each vector's lanes, and their sums.
  static constexpr int kSums = kColumns + 32 * kVectors;
  static constexpr int kRecord = kSums + (kOffsets ? 32 * kVectors : 0);

  static __m256i lanes() {  // the block of each lane
    if constexpr (kVectors == 2) return _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
    if constexpr (kBlocks == 8) return _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm256_and_si256(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(kBlocks - 1));
  }
};

// 32 bytes of codes as their products want them: of 4 bits the even and the odd columns, else weights and magnitudes.
struct Codes {
  __m256i first, second;
};

template <int kBits>
inline Codes read_codes(const uint8_t* bytes) {
  const __m256i codes = load(bytes);
  if constexpr (kBits == 4) {
    const __m256i low = _mm256_set1_epi8(15);
    return {_mm256_and_si256(codes, low), _mm256_and_si256(_mm256_srli_epi16(codes, 4), low)};
  }
  const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
  return {weights, _mm256_abs_epi8(weights)};
}

// Products with as many inputs, added up: fours of columns as 16 bits where codes have 4 bits (at most 4 * 15 * 127, so
// that four of these fit), as 32 bits where they have 8. There |weight| * (input with the weight's sign) keeps pairs
// within 16 bits: at most 2 * 128 * 127.
template <int kBits>
inline __m256i dots(const Codes& codes, const uint8_t* inputs) {
  if constexpr (kBits == 4) {
    return _mm256_add_epi16(
        _mm256_maddubs_epi16(codes.first, load(inputs)), _mm256_maddubs_epi16(codes.second, load(inputs + 32)));
  }
  const __m256i pairs = _mm256_maddubs_epi16(codes.second, _mm256_sign_epi8(load(inputs), codes.first));
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

template <int kBits>
inline __m256i add(__m256i a, __m256i b) {
  return kBits == 4 ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b);
}

// Halves the 32-bit parts of two vectors' sums: theirs in turn.
template <int kBits>
inline __m256i merge(__m256i a, __m256i b) {
  return add<kBits>(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

// Halves once more, what `merge` gave: pairs in turn.
template <int kBits>
inline __m256i merge_pairs(__m256i a, __m256i b) {
  return add<kBits>(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

// Of blocks of 16 columns with 4 bits, two parts each: the sums in the order of Form::lanes.
inline __m256i merge_parts(__m256i a, __m256i b) {
  const __m256 low = _mm256_castsi256_ps(a), high = _mm256_castsi256_ps(b);
  return _mm256_add_epi16(
      _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd)));
}

// `total` plus a step of a row of weights times one of inputs, whose record this is.
template <int kBits, int kBlock, bool kOffsets>
inline __attribute__((always_inline)) __m256 add_step(
    const Codes* codes, const uint8_t* record, const __m256* scales, const __m256* points, __m256 total) {
  using Layout = Form<kBits, kBlock, kOffsets>;
  const auto part = [&](int index) {
    __m256i sums = dots<kBits>(codes[index], record + Layout::kColumns / 4 * index);
    keep(sums);
    return sums;
  };
  const auto finish = [&](__m256i sums, int vector) {
    if constexpr (kBits == 4) sums = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    const auto* floats = reinterpret_cast<const float*>(record + Layout::kColumns) + 8 * vector;
    __m256 values = _mm256_cvtepi32_ps(sums);
    if constexpr (kOffsets) {
      values = _mm256_fnmadd_ps(points[vector], _mm256_load_ps(floats + 8 * Layout::kVectors), values);
    }
    total = _mm256_fmadd_ps(_mm256_mul_ps(scales[vector], _mm256_load_ps(floats)), values, total);
  };
  __m256i first = part(0), second = part(1);
  if constexpr (Layout::kVectors == 2) {
    finish(merge_parts(first, second), 0);
    first = part(2);
    second = part(3);
    finish(merge_parts(first, second), 1);
    return total;
  }
  constexpr bool kWhole = kBlock * 2 >= Layout::kColumns;
  first = kWhole ? add<kBits>(first, second) : merge<kBits>(first, second);
  keep(first);
  __m256i third = part(2), fourth = part(3);
  second = kWhole ? add<kBits>(third, fourth) : merge<kBits>(third, fourth);
  if constexpr (kBlock >= Layout::kColumns) {
    finish(add<kBits>(first, second), 0);
  } else if constexpr (kWhole) {
    finish(merge<kBits>(first, second), 0);
  } else {
    finish(merge_pairs<kBits>(first, second), 0);
  }
  return total;
}

}  // namespace
}  // namespace edgeblt

#endif
