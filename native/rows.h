// What layers compute row by row beside products and attention over a cache, for every level to compile for its
// instructions. A row's results depend on nothing but the row. In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_ROWS_H
#define EDGEBLT_ROWS_H

#include <algorithm>
#include <vector>

#include "common.h"
#include "entropies.h"

namespace edgeblt {
namespace {

// Lanes of a row of which `count` elements are left; the last ones are filled up with zeros.
template <int kCount>
EDGEBLT_INLINE Floats<kCount> lanes_or_zeros(const float* values, int64_t count) {
  if (count >= kCount) return load_floats<kCount>(values);
  Floats<kCount> lanes = {};
  std::memcpy(&lanes, values, static_cast<size_t>(count) * sizeof *values);
  return lanes;
}

template <int kCount>
EDGEBLT_INLINE void store_lanes(const Floats<kCount>& lanes, int64_t count, float* out) {
  if (count >= kCount) {
    std::memcpy(out, &lanes, sizeof lanes);
  } else {
    std::memcpy(out, &lanes, static_cast<size_t>(count) * sizeof *out);
  }
}

// See Kernels::normalize; kCount elements at a time.
template <int kCount>
inline void normalize_row(
    const float* values, const float* addend, const float* weight, int64_t width, float epsilon, float* total,
    float* out) {
  Floats<kCount> squares = {};
  for (int64_t i = 0; i < width; i += kCount) {
    auto some = lanes_or_zeros<kCount>(values + i, width - i);
    if (addend) {
      some += lanes_or_zeros<kCount>(addend + i, width - i);
      store_lanes<kCount>(some, width - i, total + i);
    }
    squares = some * some + squares;
  }
  const float scale = 1.0F / std::sqrt(sum_of<kCount>(squares) / static_cast<float>(width) + epsilon);
  const float* in = addend ? total : values;
  for (int64_t i = 0; i < width; i += kCount) {
    const auto normed = lanes_or_zeros<kCount>(in + i, width - i) * scale;
    store_lanes<kCount>(normed * lanes_or_zeros<kCount>(weight + i, width - i), width - i, out + i);
  }
}

// See Kernels::gate. The exponential is of -|x|, which cannot overflow.
template <int kCount>
inline void gate_row(const float* gate, const float* up, int64_t width, float* out) {
  const auto lowest = repeat<kCount>(-87), one = repeat<kCount>(1);
  for (int64_t i = 0; i < width; i += kCount) {
    const auto x = lanes_or_zeros<kCount>(gate + i, width - i);
    const auto negative = (Floats<kCount>)((Ints<kCount>)x | INT32_MIN);
    const auto power = exponential<kCount>(larger_of<kCount>(negative, lowest));
    const Floats<kCount> sigmoid = (x < 0.0F ? power : one) / (power + 1.0F);
    store_lanes<kCount>(x * sigmoid * lanes_or_zeros<kCount>(up + i, width - i), width - i, out + i);
  }
}

// e ** (score - largest score) in place of `count` scores; gives their sum. Up to kLanes - 1 scores behind them are
// overwritten.
inline float exponentials(float* scores, int64_t count) {
  for (int64_t i = count; i % kLanes; ++i) scores[i] = -HUGE_VALF;
  Lanes highest = load_floats<kLanes>(scores);
  for (int64_t begin = kLanes; begin < count; begin += kLanes) {
    highest = larger_of<kLanes>(load_floats<kLanes>(scores + begin), highest);
  }
  const float largest = largest_of<kLanes>(highest);
  Lanes total = {};
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    const Lanes share = exponential_or_zero<kLanes>(load_floats<kLanes>(scores + begin) - largest);
    store_floats<kLanes>(share, scores + begin);
    total += share;
  }
  return sum_of<kLanes>(total);
}

// One head's query: keys and values [vectors, width], `stride` elements from one to the next.
inline void attend_to_few(
    const LatentAttention& call, const float* query, const float* keys, const float* values, int64_t stride,
    float* scores, float* out) {
  for (int64_t vector = 0; vector < call.vectors; ++vector) {
    Lanes sums = {};
    for (int64_t i = 0; i < call.width; i += kLanes) {
      sums = load_floats<kLanes>(query + i) * load_floats<kLanes>(keys + vector * stride + i) + sums;
    }
    scores[vector] = sum_of<kLanes>(sums) * call.scale;
  }
  const float total = exponentials(scores, call.vectors);
  for (int64_t i = 0; i < call.width; i += kLanes) {
    Lanes mixed = {};
    for (int64_t vector = 0; vector < call.vectors; ++vector) {
      mixed = scores[vector] * load_floats<kLanes>(values + vector * stride + i) + mixed;
    }
    store_floats<kLanes>(mixed / total, out + i);
  }
}

// `count` floats of the calling thread.
inline float* few_floats(int64_t count) {
  thread_local std::vector<float> buffer;
  if (buffer.size() < static_cast<size_t>(count)) buffer.resize(static_cast<size_t>(count));
  return buffer.data();
}

// See Kernels::attend_latent. Keys are turned round once for all bytes.
inline void attend_vectors(
    const LatentAttention& call, const float* queries, const float* keys, int64_t bytes, float* out) {
  const int64_t size = call.width * call.vectors, group = call.heads / call.kv_heads, row = call.heads * call.width;
  float *turned = few_floats(size + call.vectors + kLanes), *shares = turned + size;
  const float* values = keys + call.kv_heads * size;
  for (int64_t kv_head = 0; kv_head < call.kv_heads; ++kv_head, keys += size, values += size) {
    for (int64_t vector = 0; vector < call.vectors; ++vector) {
      for (int64_t i = 0; i < call.width; ++i) turned[vector * call.width + i] = keys[i * call.vectors + vector];
    }
    for (int64_t line = 0; line < bytes * group; ++line) {
      const int64_t place = line / group * row + (kv_head * group + line % group) * call.width;
      attend_to_few(call, queries + place, turned, values, call.width, shares, out + place);
    }
  }
}

// See Kernels::attend_bytes.
inline void attend_patch(
    const LatentAttention& call, const float* queries, const float* rows, int64_t count, float* out) {
  const int64_t group = call.heads / call.kv_heads, width = call.kv_heads * call.width;
  float* shares = few_floats(call.vectors + kLanes);
  for (int64_t line = 0; line < count * call.heads; ++line) {
    const float* keys = rows + line % call.heads / group * call.width;
    attend_to_few(call, queries + line * call.width, keys, keys + width, 2 * width, shares, out + line * call.width);
  }
}

// See Kernels::add_table_row, for codes of 4 or 8 bits.
template <int kBits>
inline void add_codes(const Table& table, int64_t row, float* out) {
  constexpr int64_t kPerByte = 8 / kBits;
  const auto* codes = static_cast<const uint8_t*>(table.values) + row * ((table.width + kPerByte - 1) / kPerByte);
  const uint8_t* points = table.zero_points;
  if (points) points += row * ((table.blocks + kPerByte - 1) / kPerByte);
  for (int64_t block = 0; block < table.blocks; ++block) {
    const float scale = read_scale(table.scales, row * table.blocks + block);
    const auto code = [](const uint8_t* bytes, int64_t i) {
      return kBits == 8 ? int32_t{bytes[i]} : bytes[i / 2] >> (i % 2 * 4) & 15;
    };
    const int32_t point = points ? code(points, block) : 1 << (kBits - 1);
    const int64_t begin = block * table.block_size, end = std::min(table.width, begin + table.block_size);
    for (int64_t i = begin; i < end; ++i) out[i] += static_cast<float>(code(codes, i) - point) * scale;
  }
}

// See Kernels::add_table_row.
inline void add_row(const Table& table, int64_t row, float* out) {
  if (table.bits == 4) return add_codes<4>(table, row, out);
  if (table.bits == 8) return add_codes<8>(table, row, out);
  const Scales floats{table.values, table.bits == 16, table.width, 1};
  for (int64_t i = 0; i < table.width; ++i) out[i] += read_scale(floats, row * table.width + i);
}

}  // namespace
}  // namespace edgeblt

#endif
