// Entropies of rows of logits, for every level to compile for its instructions; where these have fused products, with
// them. In an unnamed namespace for the reason given in common.h.
#ifndef EDGEBLT_ENTROPIES_H
#define EDGEBLT_ENTROPIES_H

#include "kernels.h"
#include "lanes.h"

namespace edgeblt {
namespace {

constexpr int64_t kLanes = 8;
using Lanes = Floats<kLanes>;
using IntLanes = Ints<kLanes>;

// Adds e**d and e**d * d for eight logits; e ** d counts as 0 for d below -87.
EDGEBLT_INLINE void add_lanes(
    const Lanes& logits, const Lanes& largest, Lanes& total, Lanes& weighted) {
  const Lanes lowest = repeat<kLanes>(-87);
  Lanes difference = logits - largest;
  const IntLanes counts = difference > lowest;
  difference = counts ? difference : lowest;
  const Lanes share = (Lanes)((IntLanes)exponential<kLanes>(difference) & counts);
  total += share;
  weighted += share * difference;
}

// The last `count` logits of a row, filled up with what is as good as nothing.
EDGEBLT_INLINE void load_rest(const float* logits, int64_t count, Lanes& lanes) {
  float some[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) some[lane] = lane < count ? logits[lane] : -HUGE_VALF;
  std::memcpy(&lanes, some, sizeof lanes);
}

// H = log(sum e**d) - (sum e**d * d) / (sum e**d) with d = logit - largest logit; both terms are at least 0. One pass
// for the largest and one for both sums, in lanes of their own, so that a row has the same bits wherever it lies.
inline void entropy_rows(const float* logits, int64_t rows, int64_t width, float* out) {
  const int64_t whole = width / kLanes * kLanes;
  for (int64_t row = 0; row < rows; ++row, logits += width) {
    Lanes in, rest, highest, total = {}, weighted = {};
    load_rest(logits + whole, width - whole, rest);
    highest = rest;
    for (int64_t begin = 0; begin < whole; begin += kLanes) {
      std::memcpy(&in, logits + begin, sizeof in);
      highest = in > highest ? in : highest;
    }
    float largest = highest[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) largest = highest[lane] > largest ? highest[lane] : largest;
    highest = largest + Lanes{};
    for (int64_t begin = 0; begin < whole; begin += kLanes) {
      std::memcpy(&in, logits + begin, sizeof in);
      add_lanes(in, highest, total, weighted);
    }
    if (whole < width) add_lanes(rest, highest, total, weighted);
    float sum = 0, product = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      sum += total[lane];
      product += weighted[lane];
    }
    out[row] = std::log(sum) - product / sum;
  }
}

}  // namespace
}  // namespace edgeblt

#endif
