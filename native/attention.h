// Attention over a cache, for every level to compile for its instructions, with vectors of kCount floats. In an unnamed
// namespace for the reason given in common.h.
//
// A line is one head's query of one row. Lines that read the same keys are computed in blocks, in one pass over the
// cache: tiles of slots, of which each line keeps its largest score, the sum of its shares and its mixed values so far,
// and scales the latter two down when a larger score comes (online softmax). Tiles begin at multiples of kTileSlots, and
// within them the order of additions follows from a slot's place, so a row has the same bits whatever is computed beside
// it, and however a text is cut into calls. Products are fused with additions by `fused` alone: a compiler that is free to
// do so does it differently for one line and for several.
//
// Few lines are computed with the elements of a head in the lanes of vectors. Where there are as many lines as lanes,
// each lane is a line, which saves sums over lanes: a group. Its additions are the same, in the same order.
#ifndef EDGEBLT_ATTENTION_H
#define EDGEBLT_ATTENTION_H

#include <algorithm>
#include <cfloat>
#include <type_traits>
#include <vector>

#include "cache_format.h"

namespace edgeblt {
namespace {

constexpr int kTileSlots = 64;
constexpr int kBlockLines = 64;

// Lines of one key head, and what is known of each after the tiles so far. Where heads have kWidth elements, which the
// compiler knows then, fewer addresses are computed; 0 stands for any width. Lines from `grouped` on are in no group;
// those from `count` up to there fill up the last one, as copies.
template <int kCount, int kWidth>
struct LineBlock {
  int64_t any_width, count, grouped;
  int64_t width() const { return kWidth ? kWidth : any_width; }

  const float* queries[kBlockLines];
  float* out[kBlockLines];
  int64_t first[kBlockLines], end[kBlockLines];  // slots that a line sees
  float highest[kBlockLines];                    // score
  float factors[kBlockLines];                    // of what was added up before this tile
  Floats<kCount> totals[kBlockLines];            // of shares, a line's by slots modulo kCount; turned in groups
  alignas(64) float shares[kCount * kTileSlots];  // of this tile, line by line or a group's slot by slot; scores at first
  alignas(64) float key_scales[kTileSlots], value_scales[kTileSlots];  // of this tile, where slots have scales
  float* mixed;                                  // [kBlockLines, width] values by their shares
  float* turned;                                 // [width, kCount] queries of each group
  float* decoded;                                // [2, kTileSlots, width] keys and values of this tile
};

// Slots [first, end), counted from where their tile begins.
struct Span {
  int64_t first, end;
};

// Elements of a slot: of a head, and the scale of codes.
template <typename Element>
constexpr int64_t slot_elements(int64_t width) {
  return std::is_same_v<Element, int8_t> ? width + 1 : width;
}

// Keys or values of a tile's slots, `stride` elements from one to the next; so many of them may be read.
template <typename Element>
struct Slots {
  const Element* elements;
  int64_t stride, count;
};

// The part of a tile that some of the lines from `line` on see.
template <typename Block>
EDGEBLT_INLINE Span span_of(const Block& block, int64_t tile, int64_t line, int64_t lines) {
  const int64_t last = line + lines - 1;  // later lines see later slots
  return {std::max<int64_t>(block.first[line] - tile, 0), std::min<int64_t>(block.end[last] - tile, kTileSlots)};
}

// Scores of kLines lines with kKeys keys, key(0) and so on, a tile's slots from line to line.
template <int kCount, int kLines, int kKeys, typename Key>
EDGEBLT_INLINE void score_keys(
    const float* const* queries, const Key& key, int64_t width, float scale, float* scores) {
  constexpr int kVectors = kLines * kKeys / kCount;
  Floats<kCount> sums[kLines * kKeys] = {};
  for (int64_t begin = 0; begin < width; begin += kCount) {
    for (int k = 0; k < kKeys; ++k) {
      const auto part = load_elements<kCount>(key(k) + begin);
      for (int line = 0; line < kLines; ++line) {
        Floats<kCount>& sum = sums[line * kKeys + k];
        sum = fused<kCount>(load_floats<kCount>(queries[line] + begin), part, sum);
      }
    }
  }
  for (int vector = 0; vector < kVectors; ++vector) {
    fold_all<kCount>(sums + vector * kCount);
    const Floats<kCount> scaled = sums[vector * kCount] * scale;
    constexpr int kRun = kKeys < kCount ? kKeys : kCount;
    float values[kCount];
    std::memcpy(values, &scaled, sizeof scaled);
    for (int begin = 0; begin < kCount; begin += kRun) {
      const int place = vector * kCount + begin;
      std::memcpy(scores + place / kKeys * kTileSlots + place % kKeys, values + begin, kRun * sizeof(float));
    }
  }
}

// Scores of kLines lines from `line` on with the keys that any of them sees, and some beside them, which do not count;
// kKeys at a time.
template <int kLines, int kKeys, int kCount, int kWidth, typename Element>
inline void score_lines(
    LineBlock<kCount, kWidth>& block, const Slots<Element>& keys, int64_t tile, int64_t line, float scale) {
  const Span span = span_of(block, tile, line, kLines);
  const int64_t width = block.width(), stride = kWidth ? slot_elements<Element>(kWidth) : keys.stride;
  const auto score = [&](const auto& key, int64_t slot) __attribute__((always_inline)) {
    float* scores = block.shares + (line - block.grouped) * kTileSlots + slot;
    score_keys<kCount, kLines, kKeys>(block.queries + line, key, width, scale, scores);
  };
  int64_t slot = span.first / kKeys * kKeys;
  for (; slot < span.end && slot + kKeys <= keys.count; slot += kKeys) {
    const Element* first = keys.elements + slot * stride;
    score([&](int k) { return first + k * stride; }, slot);
  }
  if (slot >= span.end) return;
  const Element* places[kKeys];  // behind the cache there is nothing to be read
  for (int k = 0; k < kKeys; ++k) places[k] = keys.elements + std::min(slot + k, span.end - 1) * stride;
  score([&](int k) { return places[k]; }, slot);
}

// e ** (before - now), mostly without computing it: the largest score soon stays what it is.
template <int kCount>
EDGEBLT_INLINE float decrease(float before, float now) {
  if (before == now) return 1;
  if (before == -FLT_MAX) return 0;
  return exponential_or_zero<kCount>(repeat<kCount>(before - now))[0];
}

// Turns the scores of a line into shares of the largest score so far, 0 for slots that it does not see. kScaled: keys
// and values have scales, which the scores lack, and the shares then have.
template <bool kScaled, int kCount, int kWidth>
inline void share_line(LineBlock<kCount, kWidth>& block, int64_t tile, int64_t line) {
  constexpr int kVectors = kTileSlots / kCount;
  const Span span = span_of(block, tile, line, 1);
  const auto first = static_cast<int32_t>(span.first), end = static_cast<int32_t>(span.end);
  float* shares = block.shares + (line - block.grouped) * kTileSlots;
  Ints<kCount> places;
  for (int lane = 0; lane < kCount; ++lane) places[lane] = lane;
  Floats<kCount> scores[kVectors], highest = repeat<kCount>(-FLT_MAX);
  for (int vector = 0; vector < kVectors; ++vector, places += kCount) {
    const Ints<kCount> seen = (places >= first) & (places < end);
    auto score = load_floats<kCount>(shares + vector * kCount);
    if constexpr (kScaled) score *= load_floats<kCount>(block.key_scales + vector * kCount);
    scores[vector] = seen ? score : repeat<kCount>(-HUGE_VALF);
    highest = larger_of<kCount>(scores[vector], highest);
  }
  const float before = block.highest[line], now = std::max(before, largest_of<kCount>(highest));
  block.highest[line] = now;
  const float factor = decrease<kCount>(before, now);
  block.factors[line] = factor;
  Floats<kCount> total = block.totals[line];
  for (int vector = 0; vector < kVectors; ++vector) {
    auto share = exponential_or_zero<kCount>(scores[vector] - now);
    total = vector ? total + share : fused<kCount>(total, repeat<kCount>(factor), share);
    if constexpr (kScaled) share *= load_floats<kCount>(block.value_scales + vector * kCount);
    store_floats<kCount>(share, shares + vector * kCount);
  }
  block.totals[line] = total;
}

// Where the shares of a line and slot lie: elements from one to the next.
template <int kLine, int kSlot>
struct ShareStrides {
  static constexpr int64_t place(int64_t line, int64_t slot) { return line * kLine + slot * kSlot; }
};

// kParts * kCount elements of the values of a span, by the shares of kLines lines, added to what they mixed so far.
// Slots at even and at odd places are added up apart.
template <int kCount, int kLines, int kParts, typename Strides, typename Element>
EDGEBLT_INLINE void mix(
    const Span& span, const Element* values, int64_t stride, int64_t width, const float* shares, const float* factors,
    float* mixed) {
  Floats<kCount> sums[2][kLines][kParts];
  for (int line = 0; line < kLines; ++line) {
    for (int part = 0; part < kParts; ++part) {
      sums[0][line][part] = load_floats<kCount>(mixed + line * width + part * kCount) * factors[line];
      sums[1][line][part] = Floats<kCount>{};
    }
  }
  const auto add = [&](int64_t slot, int parity) __attribute__((always_inline)) {
    for (int part = 0; part < kParts; ++part) {
      const auto value = load_elements<kCount>(values + slot * stride + part * kCount);
      for (int line = 0; line < kLines; ++line) {
        Floats<kCount>& sum = sums[parity][line][part];
        sum = fused<kCount>(repeat<kCount>(shares[Strides::place(line, slot)]), value, sum);
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
template <int kLines, int kMostParts, typename Strides, int kCount, int kWidth, typename Element>
inline void mix_lines(
    LineBlock<kCount, kWidth>& block, const Slots<Element>& values, int64_t tile, int64_t line, const float* shares) {
  const Span span = span_of(block, tile, line, kLines);
  if (span.first >= span.end) return;
  const int64_t width = block.width(), stride = kWidth ? slot_elements<Element>(kWidth) : values.stride;
  int64_t begin = 0;
  const auto mix_parts = [&](auto parts) {
    constexpr int kParts = decltype(parts)::value;
    for (; begin + kParts * kCount <= width; begin += kParts * kCount) {
      mix<kCount, kLines, kParts, Strides>(span, values.elements + begin, stride, width, shares, block.factors + line,
                                           block.mixed + line * width + begin);
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

// Adds a tile of slots to what the lines [first, end), which are in no group and see some of them, have so far.
template <bool kScaled, int kCount, int kWidth, typename Element>
inline void attend_slots(
    LineBlock<kCount, kWidth>& block, const Slots<Element>& keys, const Slots<Element>& values, int64_t tile,
    int64_t first, int64_t end, float scale) {
  constexpr int kFew = kCount == 16 ? 8 : 4;  // keys that several lines read together
  constexpr bool kSeveral = std::is_same_v<Element, float>;
  in_groups<kSeveral ? 2 : 1>(first, end, [&](auto lines, int64_t line) {
    constexpr int kLines = decltype(lines)::value;
    score_lines<kLines, kLines == 1 ? kCount : kFew>(block, keys, tile, line, scale);
  });
  for (int64_t line = first; line < end; ++line) share_line<kScaled>(block, tile, line);
  in_groups<kSeveral ? 4 : 1>(first, end, [&](auto lines, int64_t line) {
    constexpr int kLines = decltype(lines)::value;
    const float* shares = block.shares + (line - block.grouped) * kTileSlots;
    mix_lines<kLines, kLines == 1 ? 4 : 2, ShareStrides<kTileSlots, 1>>(block, values, tile, line, shares);
  });
}

// Turns the queries of a group, so that a vector has an element of all of them.
template <int kCount, int kWidth>
inline void turn_queries(LineBlock<kCount, kWidth>& block, int64_t line) {
  const int64_t width = block.width();
  float* turned = block.turned + line * width;
  for (int64_t begin = 0; begin < width; begin += kCount, turned += kCount * kCount) {
    Floats<kCount> elements[kCount];
    for (int lane = 0; lane < kCount; ++lane) elements[lane] = load_floats<kCount>(block.queries[line + lane] + begin);
    turn_all<kCount>(elements);
    for (int lane = 0; lane < kCount; ++lane) store_floats<kCount>(elements[lane], turned + lane * kCount);
  }
}

// Has a line see what another sees.
template <int kCount, int kWidth>
inline void copy_line(LineBlock<kCount, kWidth>& block, int64_t from, int64_t to) {
  block.queries[to] = block.queries[from];
  block.first[to] = block.first[from];
  block.end[to] = block.end[from];
  block.highest[to] = block.highest[from];
  block.totals[to] = block.totals[from];
}

// Sums of the products of elements `place`, `place` + kCount and so on of a group's queries with those of kKeys keys,
// and of those kStride, 2 * kStride and so on from there, in the order of `fold_all`.
template <int kCount, int kKeys, int kStride = 1>
EDGEBLT_INLINE void add_products(
    const float* queries, const float* const* keys, int64_t width, int64_t place, Floats<kCount>* sums) {
  if constexpr (kStride < kCount) {
    Floats<kCount> others[kKeys];
    add_products<kCount, kKeys, 2 * kStride>(queries, keys, width, place, sums);
    add_products<kCount, kKeys, 2 * kStride>(queries, keys, width, place + kStride, others);
    for (int k = 0; k < kKeys; ++k) {
      sums[k] += others[k];
      keep<kCount>(sums[k]);
    }
  } else {
    const auto first = load_floats<kCount>(queries + place * kCount);
    for (int k = 0; k < kKeys; ++k) sums[k] = first * keys[k][place];
    for (int64_t i = place + kCount; i < width; i += kCount) {
      const auto query = load_floats<kCount>(queries + i * kCount);
      for (int k = 0; k < kKeys; ++k) sums[k] = fused<kCount>(query, repeat<kCount>(keys[k][i]), sums[k]);
    }
  }
}

// The slots that each line of a group sees, counted from where the tile begins, and those that all see.
template <int kCount>
struct GroupSpan {
  template <typename Block>
  GroupSpan(const Block& block, int64_t tile, int64_t line)
      : any(span_of(block, tile, line, kCount)), all{block.first[line + kCount - 1] - tile, block.end[line] - tile} {
    for (int lane = 0; lane < kCount; ++lane) {
      first[lane] = static_cast<int32_t>(std::max<int64_t>(block.first[line + lane] - tile, 0));
      end[lane] = static_cast<int32_t>(std::min<int64_t>(block.end[line + lane] - tile, kTileSlots));
    }
  }

  // The scores of a slot, less than any where it is not seen.
  EDGEBLT_INLINE Floats<kCount> seen(const Floats<kCount>& scores, int64_t slot) const {
    if (slot >= all.first && slot < all.end) return scores;
    const auto place = static_cast<int32_t>(slot);
    const Ints<kCount> seen = (first <= place) & (end > place);
    return seen ? scores : repeat<kCount>(-HUGE_VALF);
  }

  Span any, all;
  Ints<kCount> first, end;
};

// Scores of a group with the keys that any of its lines sees; gives the largest of each line so far.
template <bool kScaled, int kCount, int kWidth>
inline Floats<kCount> score_group(
    LineBlock<kCount, kWidth>& block, const Slots<float>& keys, const GroupSpan<kCount>& span, int64_t line,
    float scale) {
  constexpr int kKeys = 4;
  auto highest = load_floats<kCount>(block.highest + line);
  const int64_t width = block.width(), stride = kWidth ? kWidth : keys.stride;
  for (int64_t slot = span.any.first; slot < span.any.end; slot += kKeys) {
    int64_t slots[kKeys];  // where less are left, the last one several times
    const float* places[kKeys];
    for (int k = 0; k < kKeys; ++k) {
      slots[k] = std::min(slot + k, span.any.end - 1);
      places[k] = keys.elements + slots[k] * stride;
    }
    Floats<kCount> sums[kKeys];
    add_products<kCount, kKeys>(block.turned + line * width, places, width, 0, sums);
    for (int k = 0; k < kKeys; ++k) {
      Floats<kCount> scores = sums[k] * scale;
      if constexpr (kScaled) scores *= block.key_scales[slots[k]];
      scores = span.seen(scores, slots[k]);
      store_floats<kCount>(scores, block.shares + slots[k] * kCount);
      highest = larger_of<kCount>(scores, highest);
    }
  }
  return highest;
}

// What `share_line` does, for the lines of a group.
template <bool kScaled, int kCount, int kWidth>
inline void share_group(
    LineBlock<kCount, kWidth>& block, const Span& span, int64_t line, const Floats<kCount>& now) {
  const auto before = load_floats<kCount>(block.highest + line), one = repeat<kCount>(1);
  auto factors = exponential_or_zero<kCount>(before - now);
  factors = before == -FLT_MAX ? Floats<kCount>{} : factors;
  factors = before == now ? one : factors;
  store_floats<kCount>(now, block.highest + line);
  store_floats<kCount>(factors, block.factors + line);
  Floats<kCount>* totals = block.totals + line;
  const auto share = [&](int64_t slot) __attribute__((always_inline)) {
    float* place = block.shares + slot * kCount;
    const auto shares = exponential_or_zero<kCount>(load_floats<kCount>(place) - now);
    store_floats<kCount>(kScaled ? shares * block.value_scales[slot] : shares, place);
    return shares;
  };
  for (int64_t slot = 0; slot < kCount; ++slot) {
    if (slot >= span.first && slot < span.end) {
      totals[slot] = fused<kCount>(totals[slot], factors, share(slot));
    } else {
      totals[slot] *= factors;
    }
  }
  for (int64_t slot = std::max<int64_t>(span.first, kCount); slot < span.end; ++slot) {
    totals[slot % kCount] += share(slot);
  }
}

// Adds a tile of slots to what the group that begins with `line` has so far.
template <bool kScaled, int kCount, int kWidth>
inline void attend_group(
    LineBlock<kCount, kWidth>& block, const Slots<float>& keys, const Slots<float>& values, int64_t tile, int64_t line,
    float scale) {
  constexpr int kLines = 4;  // that mix values together
  const GroupSpan<kCount> span(block, tile, line);
  const auto highest = score_group<kScaled>(block, keys, span, line, scale);
  share_group<kScaled>(block, span.any, line, highest);
  for (int some = 0; some < kCount; some += kLines) {
    mix_lines<kLines, 2, ShareStrides<1, kCount>>(block, values, tile, line + some, block.shares + some);
  }
}

// Leaves in vectors[0] the sums that `sum_of` gives for the lanes of each, which are turned.
template <int kCount>
inline void add_up_totals(Floats<kCount>* vectors) {
  for (int stride = kCount / 2; stride; stride /= 2) {
    for (int i = 0; i < stride; ++i) vectors[i] += vectors[i + stride];
  }
}

// The same for lines in groups and in none.
template <bool kScaled, int kCount, int kWidth, typename Element>
inline void attend_lines(
    LineBlock<kCount, kWidth>& block, const Slots<Element>& keys, const Slots<Element>& values, int64_t tile,
    int64_t first, int64_t end, float scale) {
  if constexpr (std::is_same_v<Element, float>) {  // in other formats groups have them decoded
    const int64_t last = std::min(end, block.grouped);
    for (int64_t line = first / kCount * kCount; line < last; line += kCount) {
      attend_group<kScaled>(block, keys, values, tile, line, scale);
    }
  }
  attend_slots<kScaled>(block, keys, values, tile, std::max(first, block.grouped), end, scale);
}

// The slots of a span as float32, without their scales.
template <int kCount, typename Element>
inline Slots<float> decode(const Slots<Element>& slots, const Span& span, int64_t width, float* out) {
  for (int64_t slot = span.first; slot < span.end; ++slot) {
    const Element* from = slots.elements + slot * slots.stride;
    float* to = out + slot * width;
    for (int64_t i = 0; i < width; i += kCount) store_floats<kCount>(load_elements<kCount>(from + i), to + i);
  }
  return {out, width, kTileSlots};
}

// The same for slots of any format; several lines have them decoded once for all.
template <int kCount, int kWidth, typename Element>
inline void attend_tile(
    LineBlock<kCount, kWidth>& block, const Slots<Element>& keys, const Slots<Element>& values, int64_t tile,
    int64_t first, int64_t end, float scale) {
  constexpr bool kScaled = std::is_same_v<Element, int8_t>;
  const Span span = span_of(block, tile, first, end - first);
  const int64_t width = block.width();
  if constexpr (kScaled) {
    for (int64_t slot = span.first; slot < span.end; ++slot) {
      block.key_scales[slot] = slot_scale(keys.elements[slot * keys.stride + width]);
      block.value_scales[slot] = slot_scale(values.elements[slot * values.stride + width]);
    }
  }
  if constexpr (!std::is_same_v<Element, float>) {
    if (end - first > 1 || first < block.grouped) {
      const auto plain_keys = decode<kCount>(keys, span, width, block.decoded);
      const auto plain_values = decode<kCount>(values, span, width, block.decoded + kTileSlots * width);
      return attend_lines<kScaled>(block, plain_keys, plain_values, tile, first, end, scale);
    }
  }
  attend_lines<kScaled>(block, keys, values, tile, first, end, scale);
}

// Lines [first, end) of a key head, at most kBlockLines, counted row by row.
template <typename Element, int kCount, int kWidth>
inline void attend_block(
    const Attention& call, int64_t kv_head, int64_t first, int64_t end, LineBlock<kCount, kWidth>& block) {
  const int64_t group = call.heads / call.kv_heads, width = block.width();
  block.count = end - first;
  const int64_t left = block.count % kCount;
  block.grouped = block.count - left + (4 * left >= 3 * kCount ? kCount : 0);
  for (int64_t line = 0; line < block.count; ++line) {
    const int64_t row = (first + line) / group, head = kv_head * group + (first + line) % group;
    block.queries[line] = call.queries + (row * call.heads + head) * width;
    block.out[line] = call.out + (row * call.heads + head) * width;
    block.first[line] = call.first_slot(row);
    block.end[line] = call.past + row + 1;
    block.highest[line] = -FLT_MAX;
    block.totals[line] = Floats<kCount>{};
  }
  for (int64_t line = block.count; line < block.grouped; ++line) copy_line(block, block.count - 1, line);
  const int64_t lines = std::max(block.count, block.grouped);
  for (int64_t line = 0; line < block.grouped; line += kCount) turn_queries(block, line);
  std::fill_n(block.mixed, lines * width, 0.0F);
  int64_t begin = 0, seen = 0;  // lines that see some of a tile
  for (int64_t tile = block.first[0] / kTileSlots * kTileSlots; tile < block.end[lines - 1]; tile += kTileSlots) {
    while (block.end[begin] <= tile) ++begin;
    while (seen < lines && block.first[seen] < tile + kTileSlots) ++seen;
    const int64_t stride = slot_elements<Element>(width), place = call.place(kv_head, tile) * stride;
    const int64_t count = std::min<int64_t>(call.left(tile), kTileSlots);
    const Slots<Element> keys{static_cast<const Element*>(call.keys) + place, stride, count};
    const Slots<Element> values{static_cast<const Element*>(call.values) + place, stride, count};
    attend_tile(block, keys, values, tile, begin, seen, call.scale);
  }
  for (int64_t line = 0; line < block.grouped; line += kCount) add_up_totals<kCount>(block.totals + line);
  for (int64_t line = 0; line < block.count; ++line) {
    const bool grouped = line < block.grouped;
    const float total = grouped ? block.totals[line / kCount * kCount][line % kCount] : sum_of<kCount>(block.totals[line]);
    const float* mixed = block.mixed + line * width;
    for (int64_t i = 0; i < width; ++i) block.out[line][i] = mixed[i] / total;
  }
}

template <typename Element, int kCount, int kWidth>
inline void attend_rows_of_width(const Attention& call, int64_t kv_head, int64_t first, int64_t last) {
  thread_local std::vector<float> buffer;
  const auto mixed = static_cast<size_t>(kBlockLines * call.width), decoded = static_cast<size_t>(2 * kTileSlots * call.width);
  const size_t needed = 2 * mixed + (std::is_same_v<Element, float> ? 0 : decoded);
  if (buffer.size() < needed) buffer.resize(needed);
  LineBlock<kCount, kWidth> block;
  block.any_width = call.width;
  block.mixed = buffer.data();
  block.turned = block.mixed + mixed;
  block.decoded = block.turned + mixed;
  const int64_t group = call.heads / call.kv_heads;
  for (int64_t line = first * group; line < last * group; line += kBlockLines) {
    attend_block<Element>(call, kv_head, line, std::min<int64_t>(line + kBlockLines, last * group), block);
  }
}

template <typename Element, int kCount>
inline void attend_rows_of(const Attention& call, int64_t kv_head, int64_t first, int64_t last) {
  if constexpr (kCount > 8) {
    if (call.width % kCount) return attend_rows_of_width<Element, 8, 0>(call, kv_head, first, last);
  }
  switch (call.width) {
    case 32: return attend_rows_of_width<Element, kCount, 32>(call, kv_head, first, last);
    case 64: return attend_rows_of_width<Element, kCount, 64>(call, kv_head, first, last);
    case 128: return attend_rows_of_width<Element, kCount, 128>(call, kv_head, first, last);
    default: return attend_rows_of_width<Element, kCount, 0>(call, kv_head, first, last);
  }
}

// See Kernels::attend.
template <int kCount>
inline void attend_rows(const Attention& call, int64_t kv_head, int64_t first, int64_t last) {
  switch (call.format) {
    case kHalfCache: return attend_rows_of<Half, kCount>(call, kv_head, first, last);
    case kByteCache: return attend_rows_of<int8_t, kCount>(call, kv_head, first, last);
    default: return attend_rows_of<float, kCount>(call, kv_head, first, last);
  }
}

// See Kernels::store_row.
template <typename Element>
inline void store_row_as(
    const Attention& call, const float* projected, const float* cosines, const float* sines, int64_t row) {
  constexpr int kCount = 8;  // every width is a multiple of it
  thread_local std::vector<float> buffer;
  const int64_t width = call.width, stride = slot_elements<Element>(width);
  if (buffer.size() < static_cast<size_t>(3 * width)) buffer.resize(static_cast<size_t>(3 * width));
  float *factors = buffer.data(), *crossed = factors + width, *key = crossed + width;
  for (int64_t pair = 0; pair < width / 2; ++pair) {  // factors of an element, and of its neighbour
    factors[2 * pair] = factors[2 * pair + 1] = cosines[pair];
    crossed[2 * pair] = -sines[pair];
    crossed[2 * pair + 1] = sines[pair];
  }
  const auto rotate = [&](const float* in, float* out) {
    for (int64_t i = 0; i < width; i += kCount) {
      const auto values = load_floats<kCount>(in + i);
      const auto neighbours = swapped<kCount, 1>(values, std::make_index_sequence<kCount>());
      const auto product = neighbours * load_floats<kCount>(crossed + i);
      store_floats<kCount>(fused<kCount>(values, load_floats<kCount>(factors + i), product), out + i);
    }
  };
  for (int64_t head = 0; head < call.heads; ++head) {
    rotate(projected + head * width, call.queries + (row * call.heads + head) * width);
  }
  const float *keys = projected + call.heads * width, *values = keys + call.kv_heads * width;
  for (int64_t head = 0; head < call.kv_heads; ++head) {
    const int64_t place = call.place(head, call.past + row) * stride;
    rotate(keys + head * width, key);
    store_slot(key, width, static_cast<Element*>(call.keys) + place);
    store_slot(values + head * width, width, static_cast<Element*>(call.values) + place);
  }
}

inline void store_row(
    const Attention& call, const float* projected, const float* cosines, const float* sines, int64_t row) {
  switch (call.format) {
    case kHalfCache: return store_row_as<Half>(call, projected, cosines, sines, row);
    case kByteCache: return store_row_as<int8_t>(call, projected, cosines, sines, row);
    default: return store_row_as<float>(call, projected, cosines, sines, row);
  }
}

}  // namespace
}  // namespace edgeblt

#endif
