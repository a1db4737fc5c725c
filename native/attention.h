// Attention over a cache, for every level to compile for its instructions. Each row of queries is computed in the same
// order of operations wherever it lies and whatever rows come with it, so results do not depend on how a text is cut
// into calls. In an unnamed namespace for the reason given in common.h.
#ifndef EDGEBLT_ATTENTION_H
#define EDGEBLT_ATTENTION_H

#include <type_traits>
#include <vector>

#include "entropies.h"

namespace edgeblt {
namespace {

constexpr int kMostRows = 4;  // of queries that read a key together

inline __attribute__((always_inline)) Lanes lanes_at(const float* values) {
  Lanes lanes;
  std::memcpy(&lanes, values, sizeof lanes);
  return lanes;
}

typedef float FourLanes __attribute__((vector_size(4 * sizeof(float))));
typedef int32_t FourIntLanes __attribute__((vector_size(4 * sizeof(int32_t))));

// EDGEBLT_PICK: four of the eight lanes of two.
#if defined(__clang__)
#define EDGEBLT_SHUFFLE(lanes, ...) __builtin_shufflevector(lanes, lanes, __VA_ARGS__)
#define EDGEBLT_PICK(first, second, ...) __builtin_shufflevector(first, second, __VA_ARGS__)
#else
#define EDGEBLT_SHUFFLE(lanes, ...) __builtin_shuffle(lanes, IntLanes{__VA_ARGS__})
#define EDGEBLT_PICK(first, second, ...) __builtin_shuffle(first, second, FourIntLanes{__VA_ARGS__})
#endif

// Always in the same order: halves, quarters, the last two.
inline __attribute__((always_inline)) float sum_of(const Lanes& lanes) {
  const Lanes halves = lanes + EDGEBLT_SHUFFLE(lanes, 4, 5, 6, 7, 0, 1, 2, 3);
  const Lanes quarters = halves + EDGEBLT_SHUFFLE(halves, 2, 3, 0, 1, 6, 7, 4, 5);
  return quarters[0] + quarters[1];
}

// Sums of the halves of eight lanes.
inline __attribute__((always_inline)) FourLanes halves_of(const Lanes& lanes) {
  FourLanes halves[2];
  std::memcpy(halves, &lanes, sizeof halves);
  return halves[0] + halves[1];
}

// The four `sum_of`s, in the same order of additions.
inline __attribute__((always_inline)) FourLanes four_sums(const Lanes* lanes) {
  FourLanes quarters[2];
  for (int pair = 0; pair < 2; ++pair) {
    const FourLanes first = halves_of(lanes[2 * pair]), second = halves_of(lanes[2 * pair + 1]);
    quarters[pair] = EDGEBLT_PICK(first, second, 0, 1, 4, 5) + EDGEBLT_PICK(first, second, 2, 3, 6, 7);
  }
  return EDGEBLT_PICK(quarters[0], quarters[1], 0, 2, 4, 6) + EDGEBLT_PICK(quarters[0], quarters[1], 1, 3, 5, 7);
}

// Products of kRows queries with kKeys keys from `key` on, scaled, to scores[r * stride + k].
template <int kRows, int kKeys>
inline __attribute__((always_inline)) void score_keys(
    const Attention& call, const float* const* queries, const float* key, float* scores, int64_t stride) {
  Lanes sums[kRows][kKeys] = {};
  for (int64_t begin = 0; begin < call.width; begin += kLanes) {
    for (int k = 0; k < kKeys; ++k) {
      const Lanes part = lanes_at(key + k * call.width + begin);
      for (int row = 0; row < kRows; ++row) sums[row][k] = lanes_at(queries[row] + begin) * part + sums[row][k];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    if constexpr (kKeys == 4) {
      const FourLanes scaled = four_sums(sums[row]) * call.scale;
      std::memcpy(scores + row * stride, &scaled, sizeof scaled);
    } else {
      for (int k = 0; k < kKeys; ++k) scores[row * stride + k] = sum_of(sums[row][k]) * call.scale;
    }
  }
}

// Products with keys [first, last), to scores[r * stride + slot - first].
template <int kRows>
inline void score(
    const Attention& call, const float* const* queries, const float* keys, int64_t first, int64_t last, float* scores,
    int64_t stride) {
  constexpr int kKeys = kRows == 1 ? 4 : 2;
  int64_t slot = first;
  for (; slot + kKeys <= last; slot += kKeys) {
    score_keys<kRows, kKeys>(call, queries, keys + slot * call.width, scores + slot - first, stride);
  }
  for (; slot < last; ++slot) {
    score_keys<kRows, 1>(call, queries, keys + slot * call.width, scores + slot - first, stride);
  }
}

// e ** (score - largest score) in place of `count` scores; gives their sum. Lanes count from the first score. Up to
// kLanes - 1 scores behind them are overwritten.
inline float exponentials(float* scores, int64_t count) {
  constexpr Lanes kLowest = {-87, -87, -87, -87, -87, -87, -87, -87};
  for (int64_t i = count; i % kLanes; ++i) scores[i] = -HUGE_VALF;
  Lanes highest = lanes_at(scores);
  for (int64_t begin = kLanes; begin < count; begin += kLanes) {
    const Lanes some = lanes_at(scores + begin);
    highest = some > highest ? some : highest;
  }
  float largest = highest[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) largest = highest[lane] > largest ? highest[lane] : largest;
  highest = largest + Lanes{};
  Lanes total = {};
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    Lanes difference = lanes_at(scores + begin) - highest, share;
    const IntLanes counts = difference > kLowest;
    difference = counts ? difference : kLowest;
    exponential(difference, share);
    share = (Lanes)((IntLanes)share & counts);
    total += share;
    std::memcpy(scores + begin, &share, sizeof share);
  }
  return sum_of(total);
}

// Sums of the values of slots [first, last) by their shares, over the rows' totals, for kParts * kLanes elements.
template <int kRows, int kParts>
inline __attribute__((always_inline)) void mix(
    const float* shares, int64_t stride, const float* values, int64_t count, int64_t width, const float* totals,
    float* const* out) {
  Lanes sums[kRows][kParts] = {};
  for (int64_t slot = 0; slot < count; ++slot, values += width) {
    for (int row = 0; row < kRows; ++row) {
      const Lanes share = shares[row * stride + slot] + Lanes{};
      for (int part = 0; part < kParts; ++part) {
        sums[row][part] = share * lanes_at(values + part * kLanes) + sums[row][part];
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int part = 0; part < kParts; ++part) {
      const Lanes mixed = sums[row][part] / (totals[row] + Lanes{});
      std::memcpy(out[row] + part * kLanes, &mixed, sizeof mixed);
    }
  }
}

// Rows [row, row + kRows) of one head. Slots that one row sees and another does not count 0 in that other: adding
// nothing changes no bit.
template <int kRows>
inline void attend_rows(const Attention& call, int64_t head, int64_t row, std::vector<float>& buffer) {
  const int64_t kv = head / (call.heads / call.kv_heads) * call.capacity * call.width;
  const float* queries[kRows];
  float *out[kRows], totals[kRows];
  for (int i = 0; i < kRows; ++i) {
    const int64_t place = ((row + i) * call.heads + head) * call.width;
    queries[i] = call.queries + place;
    out[i] = call.out + place;
  }
  const int64_t first = call.first_slot(row), last = call.past + row + kRows, stride = last - first + kLanes;
  if (buffer.size() < static_cast<size_t>(kRows * stride)) buffer.resize(static_cast<size_t>(kRows * stride));
  float* scores = buffer.data();
  score<kRows>(call, queries, call.keys + kv, first, last, scores, stride);
  for (int i = 0; i < kRows; ++i) {
    const int64_t begin = call.first_slot(row + i) - first, end = call.past + row + i + 1 - first;
    float* own = scores + i * stride;
    totals[i] = exponentials(own + begin, end - begin);
    for (int64_t slot = 0; slot < begin; ++slot) own[slot] = 0;
    for (int64_t slot = end; slot < last - first; ++slot) own[slot] = 0;
  }
  const float* values = call.values + kv + first * call.width;
  int64_t begin = 0;
  // As many parts at a time as there are: a sum waits for itself, several do not wait for each other.
  const auto mix_parts = [&](auto parts) {
    constexpr int kParts = decltype(parts)::value;
    for (; begin + kParts * kLanes <= call.width; begin += kParts * kLanes) {
      float* places[kRows];
      for (int i = 0; i < kRows; ++i) places[i] = out[i] + begin;
      mix<kRows, kParts>(scores, stride, values + begin, last - first, call.width, totals, places);
    }
  };
  if constexpr (kRows == 1) {
    mix_parts(std::integral_constant<int, 8>());
    mix_parts(std::integral_constant<int, 4>());
  }
  mix_parts(std::integral_constant<int, 2>());
  mix_parts(std::integral_constant<int, 1>());
}

inline void attend_rows_of_head(const Attention& call, int64_t head, int64_t first, int64_t last) {
  thread_local std::vector<float> scores;
  int64_t row = first;
  for (; row + kMostRows <= last; row += kMostRows) attend_rows<kMostRows>(call, head, row, scores);
  for (; row < last; ++row) attend_rows<1>(call, head, row, scores);
}

}  // namespace
}  // namespace edgeblt

#endif
