// Dense products with AVX-512 VNNI: a vector holds four columns of sixteen rows, and one instruction multiplies it by
// four columns of a row of inputs. Sums are of codes; what zero points add to them is taken off by the sums of inputs.
#include "dense_zmm.h"

namespace edgeblt {
namespace {

constexpr size_t kMostRows = 16;  // of inputs that share a vector of weights

// Groups of weights that are read side by side. Of few rows, several: memory gives more by four streams than by one,
// and their sums do not wait for each other.
constexpr int groups_at_once(int rows) { return rows <= 3 ? 4 : rows <= 6 ? 2 : 1; }

// Groups [group, group + kGroups) with all rows of a tile; codes are those of the first.
template <int kBits, int kRows, int kGroups>
inline __attribute__((always_inline)) void multiply_groups(
    const DenseWeights& weights, const InputTile& tile, int64_t group, float* out) {
  constexpr int kChains = kGroups == 1 && kRows <= 3 ? kRows == 1 ? 4 : 2 : 1;  // sums that do not wait for each other
  constexpr int64_t kStepBytes = kStep * kGroup * kBits / 8;
  const int64_t steps = weights.block_size / kStep, group_bytes = weights.blocks * weights.block_bytes();
  const int64_t group_scales = weights.scales.per_row * kGroup;
  const uint8_t* codes = weights.codes + group * group_bytes;
  const int8_t* in = tile.codes;
  const float* scales = tile.scales;
  const int32_t* input_sums = tile.sums;
  ScaleCursor cursor(weights, group);
  AheadOfStreams ahead(group_bytes, kGroups);
  __m512 totals[kGroups][kRows];
  EDGEBLT_UNROLL for (int g = 0; g < kGroups; ++g) {
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[g][m] = _mm512_setzero_ps();
  }
  for (int64_t block = 0; block < weights.blocks; ++block) {
    __m512i sums[kGroups][kRows][kChains];
    EDGEBLT_UNROLL for (int g = 0; g < kGroups; ++g) {
      const __m512i points = negative_zero_points<kBits>(weights, (group + g) * weights.blocks + block, 0);
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        sums[g][m][0] = _mm512_madd_epi16(points, _mm512_set1_epi32(input_sums[m]));
        EDGEBLT_UNROLL for (int i = 1; i < kChains; ++i) sums[g][m][i] = _mm512_setzero_si512();
      }
    }
    const int64_t distance = ahead.next_block(weights.block_bytes());
    for (int64_t step = 0; step < steps; ++step, codes += kStepBytes, in += kStep * kRows) {
      EDGEBLT_UNROLL for (int g = 0; g < kGroups; ++g) {
        const uint8_t* some = codes + g * group_bytes;
        __m512i vectors[4];
        load_step<kBits>(some, vectors);
        prefetch<kStepBytes>(some, distance);
        EDGEBLT_UNROLL for (int i = 0; i < 4; ++i) {
          EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
            __m512i& sum = sums[g][m][i % kChains];
            sum = _mm512_dpbusd_epi32(sum, vectors[i], four_inputs(in, i * kRows + m));
          }
        }
      }
    }
    EDGEBLT_UNROLL for (int g = 0; g < kGroups; ++g) {
      const __m512 block_scales = load_scales(weights.scales, cursor.index() + g * group_scales);
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        EDGEBLT_UNROLL for (int i = 1; i < kChains; ++i) sums[g][m][0] = _mm512_add_epi32(sums[g][m][0], sums[g][m][i]);
        const __m512 scale = _mm512_mul_ps(block_scales, _mm512_set1_ps(scales[m]));
        totals[g][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[g][m][0]), scale, totals[g][m]);
      }
    }
    cursor.next_block();
    scales += kRows;
    input_sums += kRows;
  }
  EDGEBLT_UNROLL for (int g = 0; g < kGroups; ++g) {
    const auto inside = static_cast<__mmask16>((1u << rows_of_group(weights, group + g)) - 1);
    float* place = out + (group + g) * kGroup;
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) _mm512_mask_storeu_ps(place + m * weights.rows, inside, totals[g][m]);
  }
}

template <int kBits, int kRows>
void multiply(const DenseWeights& weights, const InputTile& tile, int64_t first, int64_t last, float* out) {
  constexpr int kGroups = groups_at_once(kRows);
  int64_t group = first;
  for (; group + kGroups <= last; group += kGroups) multiply_groups<kBits, kRows, kGroups>(weights, tile, group, out);
  if constexpr (kGroups > 1) {
    for (; group < last; ++group) multiply_groups<kBits, kRows, 1>(weights, tile, group, out);
  }
}

template <int kBits, size_t... kRows>
inline void dense(
    const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out,
    std::index_sequence<kRows...>) {
  constexpr MultiplyGroups kernels[] = {multiply<kBits, static_cast<int>(kRows) + 1>...};
  walk_groups(kernels, weights, inputs, first, last, out);
}

}  // namespace

void dense_avx512(const DenseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  constexpr auto kRows = std::make_index_sequence<kMostRows>();
  if (weights.bits == 4) return dense<4>(weights, inputs, first, last, out, kRows);
  return dense<8>(weights, inputs, first, last, out, kRows);
}

}  // namespace edgeblt
