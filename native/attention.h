// Attention over a cache, for every level to compile for its instructions. Each row of queries is computed in the same
// order of operations wherever it lies and whatever rows come with it, so results do not depend on how a text is cut
// into calls. In an unnamed namespace for the reason given in common.h.
#ifndef EDGEBLT_ATTENTION_H
#define EDGEBLT_ATTENTION_H

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

inline __attribute__((always_inline)) float sum_of(const Lanes& lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Products of kRows queries with keys [first, last), scaled, to scores[r * stride + slot - first].
template <int kRows>
inline void score(
    const Attention& call, const float* const* queries, const float* keys, int64_t first, int64_t last, float* scores,
    int64_t stride) {
  for (int64_t slot = first; slot < last; ++slot) {
    const float* key = keys + slot * call.width;
    Lanes sums[kRows] = {};
    for (int64_t begin = 0; begin < call.width; begin += kLanes) {
      const Lanes part = lanes_at(key + begin);
      for (int row = 0; row < kRows; ++row) sums[row] = lanes_at(queries[row] + begin) * part + sums[row];
    }
    for (int row = 0; row < kRows; ++row) scores[row * stride + slot - first] = sum_of(sums[row]) * call.scale;
  }
}

// e ** (score - largest score) in place of `count` scores; gives their sum. Lanes count from the first score.
inline float exponentials(float* scores, int64_t count) {
  float largest = scores[0];
  for (int64_t i = 1; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
  const Lanes highest = largest + Lanes{};
  constexpr Lanes kLowest = {-87, -87, -87, -87, -87, -87, -87, -87};
  Lanes total = {};
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    float some[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) some[lane] = begin + lane < count ? scores[begin + lane] : -HUGE_VALF;
    Lanes difference = lanes_at(some) - highest, share;
    const IntLanes counts = difference > kLowest;
    difference = counts ? difference : kLowest;
    exponential(difference, share);
    share = (Lanes)((IntLanes)share & counts);
    total += share;
    std::memcpy(some, &share, sizeof some);
    for (int64_t lane = 0; lane < kLanes && begin + lane < count; ++lane) scores[begin + lane] = some[lane];
  }
  return sum_of(total);
}

// Sums of values [first, last) by their shares, over `total`, to out; `width` a multiple of kLanes.
template <int kParts>
inline void mix(
    const float* shares, const float* values, int64_t first, int64_t last, int64_t width, float total, float* out) {
  for (int64_t begin = 0; begin < width; begin += kParts * kLanes) {
    Lanes sums[kParts] = {};
    for (int64_t slot = first; slot < last; ++slot) {
      const float* value = values + slot * width + begin;
      const Lanes share = shares[slot - first] + Lanes{};
      for (int part = 0; part < kParts; ++part) sums[part] = share * lanes_at(value + part * kLanes) + sums[part];
    }
    for (int part = 0; part < kParts; ++part) {
      const Lanes mixed = sums[part] / (total + Lanes{});
      std::memcpy(out + begin + part * kLanes, &mixed, sizeof mixed);
    }
  }
}

// Rows [row, row + kRows) of one head.
template <int kRows>
inline void attend_rows(const Attention& call, int64_t head, int64_t row, std::vector<float>& scores) {
  const int64_t kv = head / (call.heads / call.kv_heads) * call.capacity * call.width;
  const float* queries[kRows];
  for (int i = 0; i < kRows; ++i) queries[i] = call.queries + ((row + i) * call.heads + head) * call.width;
  const int64_t first = call.first_slot(row), last = call.past + row + kRows, stride = last - first;
  scores.resize(static_cast<size_t>(kRows * stride));
  score<kRows>(call, queries, call.keys + kv, first, last, scores.data(), stride);
  for (int i = 0; i < kRows; ++i) {
    const int64_t begin = call.first_slot(row + i), end = call.past + row + i + 1;
    float* own = scores.data() + i * stride + begin - first;
    const float total = exponentials(own, end - begin);
    float* out = call.out + ((row + i) * call.heads + head) * call.width;
    if (call.width % (8 * kLanes) == 0) {
      mix<8>(own, call.values + kv, begin, end, call.width, total, out);
    } else if (call.width % (2 * kLanes) == 0) {
      mix<2>(own, call.values + kv, begin, end, call.width, total, out);
    } else {
      mix<1>(own, call.values + kv, begin, end, call.width, total, out);
    }
  }
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
