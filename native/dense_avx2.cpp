// Dense products with AVX2, step by step (dense_avx2.h): a row of weights with all rows of inputs that fit a panel.
#include "dense_avx2.h"

#include <algorithm>

namespace edgeblt {
namespace {

constexpr int64_t kPanelRows = 8;  // of inputs that a pass over the weights serves: they stay in the first cache

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

// The sums of the rows of weights that fill four totals, to out[0], .. of each row of inputs.
template <int kInputs>
inline void store_rows(const __m256* totals, float* out, int64_t stride) {
  const __m128 sums = four_lane_sums(totals);
  if constexpr (kInputs == 1) return _mm_storeu_ps(out, sums);
  _mm_storel_pi(reinterpret_cast<__m64*>(out), _mm_shuffle_ps(sums, sums, 0xd8));
  _mm_storeh_pi(reinterpret_cast<__m64*>(out + stride), _mm_shuffle_ps(sums, sums, 0xd8));
}

// How a row's scales are stored: halves, one a block; halves, one for 2 ** shift blocks, which may be read 8 at a time;
// or, whatever they were, as floats, one a lane.
enum Stored { kEveryBlock, kShared, kLanes };

// Rows of weights of whole steps, one after the other.
struct Rows {
  const uint8_t* codes;
  const void* scales;
  const uint8_t* points;  // zero points, or null: 8 (of 8-bit weights, 128) serves for all
  int64_t steps, scale_count, point_bytes;  // of a row
  int64_t shift;
  __m128i places;  // with kShared: of the bytes from a vector's first scale on, those of each lane
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

// Where those of a vector's lanes are, with kShared.
template <typename Layout>
inline __m128i lane_places(int64_t shift) {
  const __m256i halves = _mm256_srl_epi32(Layout::lanes(), _mm_cvtsi64_si128(shift));
  const __m256i bytes = _mm256_add_epi32(_mm256_mullo_epi32(halves, _mm256_set1_epi32(0x202)), _mm256_set1_epi32(0x100));
  return _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
}

// The zero points of a vector's lanes, from a row's and its first block; less 128 where weights have 8 bits.
template <typename Layout, int kBits>
inline __m256 lane_points(const uint8_t* points, int64_t block) {
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
  const auto* floats = static_cast<const float*>(rows.scales);
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
      EDGEBLT_UNROLL for (int part = 0; part < kVectors; ++part) {
        const int64_t vector = step * kVectors + part, block = vector / Layout::kSpan * Layout::kBlocks;
        if constexpr (kStored == kEveryBlock) {
          scales[part] = lane_halves<Layout>(halves + block);
        } else if constexpr (kStored == kShared) {
          const void* first = halves + (block >> rows.shift);
          const __m128i shared = _mm_loadu_si128(static_cast<const __m128i*>(first));
          scales[part] = _mm256_cvtph_ps(_mm_shuffle_epi8(shared, rows.places));
        } else {
          scales[part] = _mm256_load_ps(floats + 8 * vector);
        }
        if constexpr (kOffsets) {
          offsets[part] = _mm256_set1_ps(8);
          if (points) offsets[part] = lane_points<Layout, kBits>(points, block);
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
    if constexpr (kInputs) {
      constexpr int kTogether = 4 / kInputs;
      const int64_t place = row % kTogether;
      EDGEBLT_UNROLL for (int m = 0; m < kInputs; ++m) totals[place * kInputs + m] = some[m];
      if (place == kTogether - 1) store_rows<kInputs>(totals, out + row - place, stride);
    } else {
      store_totals(totals, inputs, out + row, stride);
    }
  }
  if constexpr (kInputs) {
    const int64_t rest = count % (4 / kInputs);
    for (int64_t i = 0; i < rest * kInputs; ++i) {
      out[i % kInputs * stride + count - rest + i / kInputs] = lane_sum(totals[i]);
    }
  }
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
  const Rows rows{codes, lanes, weights.zero_points ? points : nullptr, steps, 0, 0, 0, {}};
  for (int64_t row = first; row < last; ++row) {
    std::memcpy(codes, weights.codes + row * bytes, static_cast<size_t>(bytes));
    if (rows.points) std::memcpy(points, weights.zero_points + row * point_bytes, static_cast<size_t>(point_bytes));
    block_scales(weights.scales, row, weights.blocks, blocks);
    std::fill(blocks + weights.blocks, blocks + padded_blocks + kSlack, 0.0F);
    spread<Layout>(blocks, vectors, lanes);
    multiply<kBits, kBlock, kOffsets, kLanes, kInputs == 1 ? 1 : 0>(rows, 1, records, inputs, out + row, weights.rows);
  }
}

template <int kBits, int kBlock, bool kOffsets, int kInputs>
void multiply_rows(
    const DenseWeights& weights, int64_t steps, int64_t first, int64_t last, const uint8_t* records, int64_t inputs,
    float* out) {
  using Layout = Form<kBits, kBlock, kOffsets>;
  const Scales& scales = weights.scales;
  const int64_t bytes = weights.blocks * (kBlock * kBits / 8), points = (weights.blocks * kBits + 7) / 8;
  const auto* halves = static_cast<const uint16_t*>(scales.values) + first * scales.per_row;
  Rows rows{weights.codes + first * bytes, halves, nullptr, steps, scales.per_row, points, 0, {}};
  if (weights.zero_points) rows.points = weights.zero_points + first * points;
  const bool readable = scales.half && bytes == steps * Layout::kBytes;
  if (readable && scales.blocks_per_scale == 1) {
    return multiply<kBits, kBlock, kOffsets, kEveryBlock, kInputs>(
        rows, last - first, records, inputs, out + first, weights.rows);
  }
  while (int64_t{1} << rows.shift < scales.blocks_per_scale && rows.shift < 31) ++rows.shift;
  int64_t copied = first;  // the first row that has to be
  if (readable && (scales.per_row == 1 || scales.blocks_per_scale == int64_t{1} << rows.shift)) {
    // The last rows' scales are not followed by as many as are read at once.
    const int64_t read = ((weights.blocks - Layout::kBlocks) >> rows.shift) + 8;
    copied = std::clamp(weights.rows - (read + scales.per_row - 1) / scales.per_row + 1, first, last);
    rows.places = lane_places<Layout>(rows.shift);
    multiply<kBits, kBlock, kOffsets, kShared, kInputs>(
        rows, copied - first, records, inputs, out + first, weights.rows);
  }
  multiply_copies<kBits, kBlock, kOffsets, kInputs>(weights, steps, copied, last, records, inputs, out);
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
