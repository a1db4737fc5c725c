// Attention over a cache, for every level to compile for its instructions, with vectors of kCount floats. In an unnamed
// namespace for the reason given in common.h.
//
// A line is one head's query of one row. Lines that read the same keys are computed in blocks, in one pass over the
// cache: tiles of slots, of which each line keeps its largest score, the sum of its shares and its mixed values so far,
// and scales the latter two down when a larger score comes (online softmax). Tiles begin at multiples of kTileSlots, and
// within them the order of additions follows from a slot's place, so a row has the same bits whatever is computed beside
// it, and however a text is cut into calls.
#ifndef EDGEBLT_ATTENTION_H
#define EDGEBLT_ATTENTION_H

#include <algorithm>
#include <cfloat>
#include <vector>

#include "kernels.h"
#include "lanes.h"

namespace edgeblt {
namespace {

constexpr int kTileSlots = 64;
constexpr int kBlockLines = 16;

// Lines of one key head, and what is known of each after the tiles so far.
template <int kCount>
struct LineBlock {
  int64_t count;
  const float* queries[kBlockLines];
  float* out[kBlockLines];
  int64_t first[kBlockLines], end[kBlockLines];  // slots that a line sees
  alignas(64) float highest[kBlockLines];        // score
  alignas(64) float factors[kBlockLines];        // of what was added up before this tile
  Floats<kCount> totals[kBlockLines];            // of shares, lane by lane
  alignas(64) float shares[kBlockLines * kTileSlots];  // of this tile, line by line; scores at first
  float* mixed;                                  // [kBlockLines, width] values by their shares
};

// Slots [first, end), in a tile that begins at `tile`.
struct Span {
  int64_t tile, first, end;
};

// The part of a tile that some of the lines from `line` on see.
template <int kCount>
EDGEBLT_INLINE Span span_of(const LineBlock<kCount>& block, int64_t tile, int64_t line, int64_t lines) {
  const int64_t last = line + lines - 1;  // later lines see later slots
  return {tile, std::max(block.first[line], tile), std::min<int64_t>(block.end[last], tile + kTileSlots)};
}

// Scores of kLines lines with kKeys keys, a tile's slots from line to line.
template <int kCount, int kLines, int kKeys>
EDGEBLT_INLINE void score_keys(
    const Attention& call, const float* const* queries, const float* const* keys, float* scores) {
  constexpr int kVectors = kLines * kKeys / kCount;
  Floats<kCount> sums[kLines * kKeys] = {};
  for (int64_t begin = 0; begin < call.width; begin += kCount) {
    for (int key = 0; key < kKeys; ++key) {
      const auto part = load_floats<kCount>(keys[key] + begin);
      for (int line = 0; line < kLines; ++line) {
        sums[line * kKeys + key] = load_floats<kCount>(queries[line] + begin) * part + sums[line * kKeys + key];
      }
    }
  }
  for (int vector = 0; vector < kVectors; ++vector) {
    fold_all<kCount>(sums + vector * kCount);
    const Floats<kCount> scaled = sums[vector * kCount] * call.scale;
    constexpr int kRun = kKeys < kCount ? kKeys : kCount;
    float values[kCount];
    std::memcpy(values, &scaled, sizeof scaled);
    for (int begin = 0; begin < kCount; begin += kRun) {
      const int place = vector * kCount + begin;
      std::memcpy(scores + place / kKeys * kTileSlots + place % kKeys, values + begin, kRun * sizeof(float));
    }
  }
}

// Scores of kLines lines from `line` on with the keys that any of them sees, kKeys at a time.
template <int kCount, int kLines, int kKeys>
inline void score_lines(
    const Attention& call, LineBlock<kCount>& block, const float* keys, int64_t tile, int64_t line) {
  const Span span = span_of(block, tile, line, kLines);
  for (int64_t begin = (span.first - tile) / kKeys * kKeys; tile + begin < span.end; begin += kKeys) {
    const float* places[kKeys];
    for (int key = 0; key < kKeys; ++key) {  // slots beyond the span are not read; their scores do not count
      places[key] = keys + std::clamp(tile + begin + key, span.first, span.end - 1) * call.width;
    }
    score_keys<kCount, kLines, kKeys>(call, block.queries + line, places, block.shares + line * kTileSlots + begin);
  }
}

// Turns the scores of a line into shares of the largest score so far, 0 for slots that it does not see.
template <int kCount>
inline void share_line(LineBlock<kCount>& block, int64_t tile, int64_t line) {
  constexpr int kVectors = kTileSlots / kCount;
  const Span span = span_of(block, tile, line, 1);
  const auto first = static_cast<int32_t>(span.first - tile), end = static_cast<int32_t>(span.end - tile);
  float* shares = block.shares + line * kTileSlots;
  Ints<kCount> places;
  for (int lane = 0; lane < kCount; ++lane) places[lane] = lane;
  Floats<kCount> scores[kVectors], highest = repeat<kCount>(-FLT_MAX);
  for (int vector = 0; vector < kVectors; ++vector, places += kCount) {
    const Ints<kCount> seen = (places >= first) & (places < end);
    scores[vector] = seen ? load_floats<kCount>(shares + vector * kCount) : repeat<kCount>(-HUGE_VALF);
    highest = larger_of<kCount>(scores[vector], highest);
  }
  const float before = block.highest[line], now = std::max(before, largest_of<kCount>(highest));
  block.highest[line] = now;
  block.factors[line] = before - now;
  Floats<kCount> total = {};
  for (int vector = 0; vector < kVectors; ++vector) {
    const auto share = exponential_or_zero<kCount>(scores[vector] - now);
    store_floats<kCount>(share, shares + vector * kCount);
    total += share;
  }
  block.totals[line] = total;
}

// kParts * kCount elements of the values of a span, by the shares of kLines lines, added to what they mixed so far.
// Slots at even and at odd places are added up apart.
template <int kCount, int kLines, int kParts>
EDGEBLT_INLINE void mix(
    const Span& span, const float* values, int64_t width, const float* shares, const float* factors, float* mixed) {
  Floats<kCount> sums[2][kLines][kParts];
  for (int line = 0; line < kLines; ++line) {
    for (int part = 0; part < kParts; ++part) {
      sums[0][line][part] = load_floats<kCount>(mixed + line * width + part * kCount) * factors[line];
      sums[1][line][part] = Floats<kCount>{};
    }
  }
  const auto add = [&](int64_t slot, int parity) __attribute__((always_inline)) {
    for (int part = 0; part < kParts; ++part) {
      const auto value = load_floats<kCount>(values + slot * width + part * kCount);
      for (int line = 0; line < kLines; ++line) {
        sums[parity][line][part] = repeat<kCount>(shares[line * kTileSlots + slot - span.tile]) * value + sums[parity][line][part];
      }
    }
  };
  int64_t slot = span.first;
  if (slot & 1) add(slot++, 1);
  for (; slot + 2 <= span.end; slot += 2) {
    add(slot, 0);
    add(slot + 1, 1);
  }
  if (slot < span.end) add(slot, 0);
  for (int line = 0; line < kLines; ++line) {
    for (int part = 0; part < kParts; ++part) {
      store_floats<kCount>(sums[0][line][part] + sums[1][line][part], mixed + line * width + part * kCount);
    }
  }
}

// As many elements at a time as registers hold sums for: kMostParts vectors, then less.
template <int kCount, int kLines, int kMostParts>
inline void mix_lines(
    const Attention& call, LineBlock<kCount>& block, const float* values, int64_t tile, int64_t line) {
  const Span span = span_of(block, tile, line, kLines);
  int64_t begin = 0;
  const auto mix_parts = [&](auto parts) {
    constexpr int kParts = decltype(parts)::value;
    for (; begin + kParts * kCount <= call.width; begin += kParts * kCount) {
      mix<kCount, kLines, kParts>(span, values + begin, call.width, block.shares + line * kTileSlots, block.factors + line,
                                  block.mixed + line * call.width + begin);
    }
  };
  mix_parts(std::integral_constant<int, kMostParts>());
  if constexpr (kMostParts > 2) mix_parts(std::integral_constant<int, 2>());
  mix_parts(std::integral_constant<int, 1>());
}

// apply(lines, line) for lines [first, end), kMost of them at a time as long as there are so many.
template <int kMost, typename Apply>
EDGEBLT_INLINE void in_groups(int64_t first, int64_t end, const Apply& apply) {
  for (; first + kMost <= end; first += kMost) apply(std::integral_constant<int, kMost>(), first);
  for (; first < end; ++first) apply(std::integral_constant<int, 1>(), first);
}

// Adds a tile of slots to what the lines [first, end), which see some of them, have so far.
template <int kCount>
inline void attend_tile(
    const Attention& call, LineBlock<kCount>& block, const float* keys, const float* values, int64_t tile,
    int64_t first, int64_t end) {
  constexpr int kFew = kCount == 16 ? 8 : 4;  // keys that several lines read together
  in_groups<2>(first, end, [&](auto lines, int64_t line) {
    constexpr int kLines = decltype(lines)::value;
    score_lines<kCount, kLines, kLines == 1 ? kCount : kFew>(call, block, keys, tile, line);
  });
  Floats<kCount> totals[kBlockLines];
  for (int64_t line = first; line < end; ++line) {
    totals[line] = block.totals[line];
    share_line<kCount>(block, tile, line);
  }
  for (int64_t begin = 0; begin < kBlockLines; begin += kCount) {
    if (begin >= end || begin + kCount <= first) continue;
    const auto factors = exponential_or_zero<kCount>(load_floats<kCount>(block.factors + begin));
    store_floats<kCount>(factors, block.factors + begin);
  }
  for (int64_t line = first; line < end; ++line) {
    block.totals[line] = totals[line] * block.factors[line] + block.totals[line];
  }
  in_groups<4>(first, end, [&](auto lines, int64_t line) {
    constexpr int kLines = decltype(lines)::value, kSums = kCount == 16 ? 8 : 4;
    mix_lines<kCount, kLines, kLines == 1 ? 4 : kSums / 4>(call, block, values, tile, line);
  });
}

// Lines [first, end) of a key head, at most kBlockLines, counted row by row.
template <int kCount>
inline void attend_block(
    const Attention& call, int64_t kv_head, int64_t first, int64_t end, LineBlock<kCount>& block) {
  const int64_t group = call.heads / call.kv_heads, head_size = call.capacity * call.width;
  block.count = end - first;
  for (int64_t line = 0; line < block.count; ++line) {
    const int64_t row = (first + line) / group, head = kv_head * group + (first + line) % group;
    block.queries[line] = call.queries + (row * call.heads + head) * call.width;
    block.out[line] = call.out + (row * call.heads + head) * call.width;
    block.first[line] = call.first_slot(row);
    block.end[line] = call.past + row + 1;
    block.highest[line] = -FLT_MAX;
    block.totals[line] = Floats<kCount>{};
  }
  std::fill_n(block.factors, kBlockLines, 0.0F);
  std::fill_n(block.mixed, block.count * call.width, 0.0F);
  int64_t begin = 0, seen = 0;  // lines that see some of a tile
  for (int64_t tile = block.first[0] / kTileSlots * kTileSlots; tile < block.end[block.count - 1]; tile += kTileSlots) {
    while (block.end[begin] <= tile) ++begin;
    while (seen < block.count && block.first[seen] < tile + kTileSlots) ++seen;
    attend_tile<kCount>(call, block, call.keys + kv_head * head_size, call.values + kv_head * head_size, tile, begin,
                        seen);
  }
  for (int64_t line = 0; line < block.count; ++line) {
    const float total = sum_of<kCount>(block.totals[line]);
    const float* mixed = block.mixed + line * call.width;
    for (int64_t i = 0; i < call.width; ++i) block.out[line][i] = mixed[i] / total;
  }
}

// See Kernels::store_row.
inline void store_row(
    const Attention& call, const float* projected, const float* cosines, const float* sines, int64_t row) {
  constexpr int kCount = 8;  // every width is a multiple of it
  thread_local std::vector<float> buffer;
  const int64_t width = call.width, slot = call.past + row;
  if (buffer.size() < static_cast<size_t>(2 * width)) buffer.resize(static_cast<size_t>(2 * width));
  float *factors = buffer.data(), *crossed = factors + width;  // of an element, and of its neighbour
  for (int64_t pair = 0; pair < width / 2; ++pair) {
    factors[2 * pair] = factors[2 * pair + 1] = cosines[pair];
    crossed[2 * pair] = -sines[pair];
    crossed[2 * pair + 1] = sines[pair];
  }
  for (int64_t head = 0; head < call.heads + call.kv_heads; ++head, projected += width) {
    float* out = head < call.heads ? call.queries + (row * call.heads + head) * width
                                   : call.keys + ((head - call.heads) * call.capacity + slot) * width;
    for (int64_t i = 0; i < width; i += kCount) {
      const auto values = load_floats<kCount>(projected + i);
      const auto neighbours = swapped<kCount, 1>(values, std::make_index_sequence<kCount>());
      const auto product = neighbours * load_floats<kCount>(crossed + i);
      store_floats<kCount>(values * load_floats<kCount>(factors + i) + product, out + i);
    }
  }
  for (int64_t head = 0; head < call.kv_heads; ++head, projected += width) {
    std::memcpy(call.values + (head * call.capacity + slot) * width, projected,
                static_cast<size_t>(width) * sizeof(float));
  }
}

// See Kernels::attend.
template <int kCount>
inline void attend_rows(const Attention& call, int64_t kv_head, int64_t first, int64_t last) {
  if constexpr (kCount > 8) {
    if (call.width % kCount) return attend_rows<8>(call, kv_head, first, last);
  }
  thread_local std::vector<float> mixed;
  LineBlock<kCount> block;
  const auto needed = static_cast<size_t>(kBlockLines * call.width);
  if (mixed.size() < needed) mixed.resize(needed);
  block.mixed = mixed.data();
  const int64_t group = call.heads / call.kv_heads;
  for (int64_t line = first * group; line < last * group; line += kBlockLines) {
    attend_block<kCount>(call, kv_head, line, std::min<int64_t>(line + kBlockLines, last * group), block);
  }
}

}  // namespace
}  // namespace edgeblt

#endif
