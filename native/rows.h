// What layers compute row by row beside products and attention over a cache, for every level to compile for its
// instructions. A row's results depend on nothing but the row. In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_ROWS_H
#define EDGEBLT_ROWS_H

#include "attention.h"

namespace edgeblt {
namespace {

// Lanes of a row of which `count` elements are left; the last ones are filled up with zeros.
inline __attribute__((always_inline)) Lanes lanes_or_zeros(const float* values, int64_t count) {
  if (count >= kLanes) return lanes_at(values);
  Lanes lanes = {};
  std::memcpy(&lanes, values, static_cast<size_t>(count) * sizeof *values);
  return lanes;
}

inline __attribute__((always_inline)) void store_lanes(const Lanes& lanes, int64_t count, float* out) {
  if (count >= kLanes) {
    std::memcpy(out, &lanes, sizeof lanes);
  } else {
    std::memcpy(out, &lanes, static_cast<size_t>(count) * sizeof *out);
  }
}

// See Kernels::normalize.
inline void normalize_row(
    const float* values, const float* addend, const float* weight, int64_t width, float epsilon, float* total,
    float* out) {
  Lanes squares = {};
  for (int64_t i = 0; i < width; i += kLanes) {
    Lanes some = lanes_or_zeros(values + i, width - i);
    if (addend) {
      some += lanes_or_zeros(addend + i, width - i);
      store_lanes(some, width - i, total + i);
    }
    squares = some * some + squares;
  }
  const float scale = 1.0F / std::sqrt(sum_of(squares) / static_cast<float>(width) + epsilon);
  const float* in = addend ? total : values;
  for (int64_t i = 0; i < width; i += kLanes) {
    const Lanes normed = lanes_or_zeros(in + i, width - i) * scale * lanes_or_zeros(weight + i, width - i);
    store_lanes(normed, width - i, out + i);
  }
}

// See Kernels::gate. The exponential is of -|x|, which cannot overflow.
inline void gate_row(const float* gate, const float* up, int64_t width, float* out) {
  constexpr Lanes kLowest = {-87, -87, -87, -87, -87, -87, -87, -87};
  for (int64_t i = 0; i < width; i += kLanes) {
    const Lanes x = lanes_or_zeros(gate + i, width - i);
    Lanes negative = (Lanes)((IntLanes)x | INT32_MIN), power;
    negative = negative > kLowest ? negative : kLowest;
    exponential(negative, power);
    const Lanes sigmoid = (x < 0.0F ? power : Lanes{} + 1.0F) / (power + 1.0F);
    store_lanes(x * sigmoid * lanes_or_zeros(up + i, width - i), width - i, out + i);
  }
}

// See Kernels::attend_latent.
inline void attend_vectors(const LatentAttention& call, const float* queries, const float* keys, float* out) {
  thread_local std::vector<float> buffer;
  const auto needed = static_cast<size_t>(call.vectors + kLanes);
  if (buffer.size() < needed) buffer.resize(needed);
  float* scores = buffer.data();
  const int64_t size = call.width * call.vectors, group = call.heads / call.kv_heads;
  const float* values = keys + call.kv_heads * size;
  for (int64_t head = 0; head < call.heads; ++head, queries += call.width, out += call.width) {
    const float *key = keys + head / group * size, *value = values + head / group * size;
    for (int64_t vector = 0; vector < call.vectors; ++vector) {
      Lanes sums = {};
      for (int64_t i = 0; i < call.width; i += kLanes) {
        Lanes some;
        for (int64_t lane = 0; lane < kLanes; ++lane) some[lane] = key[(i + lane) * call.vectors + vector];
        sums = lanes_at(queries + i) * some + sums;
      }
      scores[vector] = sum_of(sums) * call.scale;
    }
    const float total = exponentials(scores, call.vectors);
    for (int64_t i = 0; i < call.width; i += kLanes) {
      float* const place = out + i;
      mix<1, 1>(scores, 0, value + i, call.vectors, call.width, &total, &place);
    }
  }
}

}  // namespace
}  // namespace edgeblt

#endif
