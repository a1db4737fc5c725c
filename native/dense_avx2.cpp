// Dense products with AVX2. A row of weights is taken in steps of 128 bytes; for each, the sums of every block end up in
// lanes of one vector of integers, so that scales and zero points cost a few instructions for eight blocks.
#include "avx2.h"

#include <algorithm>

namespace edgeblt {
namespace {

constexpr int64_t kPanelRows = 8;  // of inputs that a pass over the weights serves: they stay in the first cache

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

// The sums of `count` rows of inputs, to out[0], out[stride], ..; totals start anew.
inline void store_totals(__m256* totals, int64_t count, float* out, int64_t stride) {
  for (; count > 0; count -= 4, totals += 4, out += 4 * stride) {
    if (count >= 4) {
      store_column(four_lane_sums(totals), out, stride);
    } else {
      for (int64_t m = 0; m < count; ++m) out[m * stride] = lane_sum(totals[m]);
    }
    EDGEBLT_UNROLL for (int m = 0; m < 4; ++m) totals[m] = _mm256_setzero_ps();
  }
}

// How a row's scales are stored: halves, one a block; halves, one for all blocks of a vector; or anything, which is first
// made floats, one a lane.
enum Stored { kEveryBlock, kEveryVector, kLanes };

// Rows of weights of whole steps, one after the other.
struct Rows {
  const uint8_t* codes;
  const void* scales;     // as `Stored` says
  const uint8_t* points;  // zero points, or null: 8 (of 8-bit weights, 128) serves for all
  int64_t steps, scale_count, point_bytes;  // of a row
};

// The scales of a vector's lanes from its blocks' halves.
template <typename Layout>
inline __m256 lane_halves(const uint16_t* halves) {
  __m128i some;
  if constexpr (Layout::kBlocks == 8) {
    some = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves));
    some = Layout::kVectors == 2
        ? _mm_shuffle_epi32(some, 0xd8)
        : _mm_shuffle_epi8(some, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  } else if constexpr (Layout::kBlocks == 4) {
    double four;
    std::memcpy(&four, halves, sizeof four);
    some = _mm_castpd_si128(_mm_set1_pd(four));
  } else if constexpr (Layout::kBlocks == 2) {
    int32_t two;
    std::memcpy(&two, halves, sizeof two);
    some = _mm_set1_epi32(two);
  } else {
    some = _mm_set1_epi16(static_cast<int16_t>(*halves));
  }
  return _mm256_cvtph_ps(some);
}

// The zero points of a vector's lanes, less 128 where weights have 8 bits, from a row's.
template <typename Layout, int kBits>
inline __m256 lane_points(const uint8_t* points, int64_t vector) {
  const int64_t block = vector / Layout::kSpan * Layout::kBlocks;
  if constexpr (kBits == 8) {
    int64_t some = 0;
    std::memcpy(&some, points + block, Layout::kBlocks);
    const __m256i places = _mm256_or_si256(Layout::lanes(), _mm256_set1_epi32(static_cast<int>(0x80808000)));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi64x(some), places);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(bytes, _mm256_set1_epi32(128)));
  }
  int32_t some = 0;
  std::memcpy(&some, points + block / 2, (Layout::kBlocks + 1) / 2);
  if (Layout::kBlocks == 1) some >>= block % 2 * 4;
  const __m256i shifts = _mm256_slli_epi32(Layout::lanes(), 2);
  const __m256i bytes = _mm256_srlv_epi32(_mm256_set1_epi32(some), shifts);
  return _mm256_cvtepi32_ps(_mm256_and_si256(bytes, _mm256_set1_epi32(15)));
}

// Of the vectors of step `step` the scales of the lanes.
template <typename Layout, Stored kStored>
inline void read_scales(const uint16_t* row, int64_t step, __m256* lanes) {
  EDGEBLT_UNROLL for (int vector = 0; vector < Layout::kVectors; ++vector) {
    const int64_t index = step * Layout::kVectors + vector;
    if constexpr (kStored == kEveryBlock) {
      lanes[vector] = lane_halves<Layout>(row + index / Layout::kSpan * Layout::kBlocks);
    } else if constexpr (kStored == kEveryVector) {
      lanes[vector] = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(row[index])));
    } else {
      lanes[vector] = _mm256_load_ps(reinterpret_cast<const float*>(row) + 8 * index);
    }
  }
}

// `count` rows of weights times the rows of inputs whose records these are, kInputs, or up to kPanelRows where that is 0:
// to out[0], out[1], .. of each. Not inlined: in one large function the compiler keeps its pointers in memory.
template <int kBits, int kBlock, bool kOffsets, Stored kStored, int kInputs>
__attribute__((noinline)) void multiply(
    const Rows& rows, int64_t count, const uint8_t* records, int64_t inputs, float* out, int64_t stride) {
  using Layout = Form<kBits, kBlock, kOffsets>;
  constexpr int kVectors = Layout::kVectors;
  const int64_t steps = rows.steps;
  const uint8_t *bytes = rows.codes, *points = rows.points;
  const auto* halves = static_cast<const uint16_t*>(rows.scales);
  __m256 totals[kPanelRows];
  for (__m256& total : totals) total = _mm256_setzero_ps();
  for (int64_t row = 0; row < count; ++row) {
    __m256 some[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    const uint8_t* record = records;
    for (int64_t step = 0; step < steps; ++step, bytes += Layout::kBytes) {
      prefetch<1, Layout::kBytes>(bytes);
      Codes codes[4];
      __m256 scales[kVectors], offsets[kVectors];
      EDGEBLT_UNROLL for (int part = 0; part < 4; ++part) codes[part] = read_codes<kBits>(bytes + 32 * part);
      read_scales<Layout, kStored>(halves, step, scales);
      if constexpr (kOffsets) {
        EDGEBLT_UNROLL for (int vector = 0; vector < kVectors; ++vector) {
          offsets[vector] = _mm256_set1_ps(8);
          if (points) offsets[vector] = lane_points<Layout, kBits>(points, step * kVectors + vector);
        }
      }
      if constexpr (kInputs) {
        EDGEBLT_UNROLL for (int m = 0; m < kInputs; ++m, record += Layout::kRecord) {
          some[m] = add_step<kBits, kBlock, kOffsets>(codes, record, scales, offsets, some[m]);
        }
      } else {
        for (__m256* total = totals; total != totals + inputs; ++total, record += Layout::kRecord) {
          *total = add_step<kBits, kBlock, kOffsets>(codes, record, scales, offsets, *total);
        }
      }
    }
    halves += rows.scale_count;
    if (points) points += rows.point_bytes;
    if constexpr (kInputs == 1) {
      totals[row % 4] = some[0];
      if (row % 4 == 3) _mm_storeu_ps(out + row - 3, four_lane_sums(totals));
    } else if constexpr (kInputs == 2) {
      out[row] = lane_sum(some[0]);
      out[stride + row] = lane_sum(some[1]);
    } else {
      store_totals(totals, inputs, out + row, stride);
    }
  }
  if (kInputs == 1 && count % 4) store_some(four_lane_sums(totals), count % 4, out + count / 4 * 4);
}

// A value for each block as one for each lane. `some`: 8 floats may be read from any block's.
template <typename Layout>
inline void spread(const float* some, int64_t vectors, float* out) {
  const __m256i lanes = Layout::lanes();
  for (int64_t vector = 0; vector < vectors; ++vector) {
    const float* first = some + vector / Layout::kSpan * Layout::kBlocks;
    _mm256_store_ps(out + 8 * vector, _mm256_permutevar8x32_ps(_mm256_loadu_ps(first), lanes));
  }
}

// Rows [m, m + count) of inputs as records: [steps, count, kRecord].
template <typename Layout, bool kOffsets>
void pack_inputs(const Inputs& inputs, int64_t m, int64_t count, int64_t steps, uint8_t* records) {
  const int64_t vectors = steps * Layout::kVectors;
  float* lanes = block_buffer<5>(8 * vectors);
  for (int64_t row = m; row < m + count; ++row, records += Layout::kRecord) {
    const int8_t* codes = inputs.codes + row * inputs.columns;
    for (int64_t step = 0; step < steps; ++step) {
      uint8_t* record = records + step * count * Layout::kRecord;
      const int64_t left = inputs.columns - step * Layout::kColumns;  // whole tiles
      std::memcpy(record, codes + step * Layout::kColumns, 128);
      if (Layout::kColumns == 256 && left >= 256) std::memcpy(record + 128, codes + step * 256 + 128, 128);
      if (Layout::kColumns == 256 && left < 256) std::memset(record + 128, 0, 128);
    }
    spread<Layout>(inputs.scales + row * inputs.stride, vectors, lanes);
    for (int64_t step = 0; step < steps; ++step) {
      std::memcpy(records + step * count * Layout::kRecord + Layout::kColumns, lanes + step * 8 * Layout::kVectors,
                  32 * Layout::kVectors);
    }
    if constexpr (kOffsets) {
      spread<Layout>(inputs.sums + row * inputs.stride, vectors, lanes);
      for (int64_t step = 0; step < steps; ++step) {
        float* sums = lanes + step * 8 * Layout::kVectors;
        // Of lanes that repeat a block only one takes its zero point off.
        for (int lane = Layout::kBlocks; lane < 8; ++lane) sums[lane] = 0;
        if (step % Layout::kSpan) sums[0] = 0;
        std::memcpy(records + step * count * Layout::kRecord + Layout::kSums, sums, 32 * Layout::kVectors);
      }
    }
  }
}

// Rows of weights that cannot be read as they are: one at a time, with zeros up to whole steps, its scales one a lane.
template <int kBits, int kBlock, bool kOffsets, int kInputs>
void multiply_copies(
    const DenseWeights& weights, int64_t steps, int64_t first, int64_t last, const uint8_t* records, int64_t inputs,
    float* out) {
  using Layout = Form<kBits, kBlock, kOffsets>;
  const int64_t vectors = steps * Layout::kVectors, bytes = weights.blocks * (kBlock * kBits / 8);
  const int64_t point_bytes = (weights.blocks * kBits + 7) / 8, padded_blocks = vectors * Layout::kBlocks;
  float *blocks = block_buffer<0>(padded_blocks + kSlack), *lanes = block_buffer<1>(8 * vectors);
  auto* codes = reinterpret_cast<uint8_t*>(block_buffer<3>((steps * Layout::kBytes + padded_blocks) / 4));
  uint8_t* points = codes + steps * Layout::kBytes;
  std::memset(codes, 0, static_cast<size_t>(steps * Layout::kBytes + padded_blocks));
  const Rows rows{codes, lanes, weights.zero_points ? points : nullptr, steps, 0, 0};
  for (int64_t row = first; row < last; ++row) {
    std::memcpy(codes, weights.codes + row * bytes, static_cast<size_t>(bytes));
    if (rows.points) std::memcpy(points, weights.zero_points + row * point_bytes, static_cast<size_t>(point_bytes));
    block_scales(weights.scales, row, weights.blocks, blocks);
    std::fill(blocks + weights.blocks, blocks + padded_blocks + kSlack, 0.0F);
    spread<Layout>(blocks, vectors, lanes);
    multiply<kBits, kBlock, kOffsets, kLanes, kInputs>(rows, 1, records, inputs, out + row, weights.rows);
  }
}

template <int kBits, int kBlock, bool kOffsets, int kInputs>
void multiply_rows(
    const DenseWeights& weights, int64_t steps, int64_t first, int64_t last, const uint8_t* records, int64_t inputs,
    float* out) {
  using Layout = Form<kBits, kBlock, kOffsets>;
  const Scales& scales = weights.scales;
  const int64_t bytes = weights.blocks * (kBlock * kBits / 8), points = (weights.blocks * kBits + 7) / 8;
  Rows rows{weights.codes + first * bytes, static_cast<const uint16_t*>(scales.values) + first * scales.per_row,
            nullptr, steps, scales.per_row, points};
  if (weights.zero_points) rows.points = weights.zero_points + first * points;
  const bool whole = bytes == steps * Layout::kBytes && scales.half;
  if (whole && scales.blocks_per_scale == 1) {
    return multiply<kBits, kBlock, kOffsets, kEveryBlock, kInputs>(
        rows, last - first, records, inputs, out + first, weights.rows);
  }
  if constexpr (kBlock == 16) {
    if (whole && scales.blocks_per_scale == Layout::kBlocks) {
      return multiply<kBits, kBlock, kOffsets, kEveryVector, kInputs>(
          rows, last - first, records, inputs, out + first, weights.rows);
    }
  }
  multiply_copies<kBits, kBlock, kOffsets, kInputs>(weights, steps, first, last, records, inputs, out);
}

template <int kBits, int kBlock, bool kOffsets>
void dense(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  using Layout = Form<kBits, kBlock, kOffsets>;
  const int64_t steps = (weights.blocks * kBlock + Layout::kColumns - 1) / Layout::kColumns;
  auto* records = reinterpret_cast<uint8_t*>(block_buffer<2>(kPanelRows * steps * Layout::kRecord / 4));
  for (int64_t m = 0; m < inputs.rows; m += kPanelRows) {
    const int64_t count = inputs.rows - m < kPanelRows ? inputs.rows - m : kPanelRows;
    pack_inputs<Layout, kOffsets>(inputs, m, count, steps, records);
    float* to = out + m * weights.rows;
    if (count == 1) {
      multiply_rows<kBits, kBlock, kOffsets, 1>(weights, steps, first, last, records, 1, to);
    } else if (count == 2) {
      multiply_rows<kBits, kBlock, kOffsets, 2>(weights, steps, first, last, records, 2, to);
    } else {
      multiply_rows<kBits, kBlock, kOffsets, 0>(weights, steps, first, last, records, count, to);
    }
  }
}

template <int kBits, bool kOffsets>
void dense_of_block(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return dense<kBits, 16, kOffsets>(weights, inputs, first, last, out);
    case 32: return dense<kBits, 32, kOffsets>(weights, inputs, first, last, out);
    case 64: return dense<kBits, 64, kOffsets>(weights, inputs, first, last, out);
    case 128: return dense<kBits, 128, kOffsets>(weights, inputs, first, last, out);
    default: return dense<kBits, 256, kOffsets>(weights, inputs, first, last, out);
  }
}

}  // namespace

void dense_avx2(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.bits == 4) return dense_of_block<4, true>(weights, inputs, first, last, out);
  if (weights.zero_points) return dense_of_block<8, true>(weights, inputs, first, last, out);
  return dense_of_block<8, false>(weights, inputs, first, last, out);
}

}  // namespace edgeblt
