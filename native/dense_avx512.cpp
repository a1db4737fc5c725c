// Dense products with AVX-512 VNNI: a vector holds four columns of sixteen rows, and one instruction multiplies it by
// four columns of a row of inputs. Sums are of codes; what zero points add to them is taken off by the sums of inputs.
#include "dense_zmm.h"

namespace edgeblt {
namespace {

constexpr size_t kMostRows = 16;  // of inputs that share a vector of weights

template <int kBits, int kRows>
void multiply(const DenseWeights& weights, const InputTile& tile, int64_t first, int64_t last, float* out) {
  constexpr int kChains = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;  // sums that do not wait for each other
  constexpr int64_t kStepBytes = kStep * kGroup * kBits / 8;
  const int64_t steps = weights.block_size / kStep;
  const uint8_t* codes = weights.codes + first * weights.blocks * weights.block_bytes();
  for (int64_t group = first; group < last; ++group) {
    const int8_t* in = tile.codes;
    const float* scales = tile.scales;
    const int32_t* input_sums = tile.sums;
    ScaleCursor cursor(weights, group);
    __m512 totals[kRows];
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[m] = _mm512_setzero_ps();
    for (int64_t block = 0; block < weights.blocks; ++block) {
      const __m512i points = negative_zero_points<kBits>(weights, group * weights.blocks + block, 0);
      __m512i sums[kRows][kChains];
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        sums[m][0] = _mm512_madd_epi16(points, _mm512_set1_epi32(input_sums[m]));
        EDGEBLT_UNROLL for (int i = 1; i < kChains; ++i) sums[m][i] = _mm512_setzero_si512();
      }
      for (int64_t step = 0; step < steps; ++step, codes += kStepBytes, in += kStep * kRows) {
        __m512i vectors[4];
        load_step<kBits>(codes, vectors);
        prefetch<kStepBytes>(codes);
        EDGEBLT_UNROLL for (int i = 0; i < 4; ++i) {
          EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
            __m512i& sum = sums[m][i % kChains];
            sum = _mm512_dpbusd_epi32(sum, vectors[i], four_inputs(in, i * kRows + m));
          }
        }
      }
      const __m512 block_scales = load_scales(weights.scales, cursor.index());
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        EDGEBLT_UNROLL for (int i = 1; i < kChains; ++i) sums[m][0] = _mm512_add_epi32(sums[m][0], sums[m][i]);
        const __m512 scale = _mm512_mul_ps(block_scales, _mm512_set1_ps(scales[m]));
        totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m][0]), scale, totals[m]);
      }
      cursor.next_block();
      scales += kRows;
      input_sums += kRows;
    }
    const auto inside = static_cast<__mmask16>((1u << rows_of_group(weights, group)) - 1);
    float* place = out + group * kGroup;
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) _mm512_mask_storeu_ps(place + m * weights.rows, inside, totals[m]);
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
