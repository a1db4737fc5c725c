// Dense products with AVX-512 VNNI: a vector holds four columns of sixteen rows, and one instruction multiplies it by
// four columns of a row of inputs. Sums are of codes; what zero points add to them is taken off by the sums of inputs.
#include "avx512.h"
#include "dense.h"

namespace edgeblt {
namespace {

constexpr size_t kMostRows = 16;  // of inputs that share a vector of weights
constexpr int64_t kStep = 16;     // columns, the least size of a block

// The codes of kStep columns of a group, four columns in a vector.
template <int kBits>
inline __attribute__((always_inline)) void load_step(const uint8_t* codes, __m512i* vectors) {
  if constexpr (kBits == 8) {
    EDGEBLT_UNROLL for (int i = 0; i < 4; ++i) vectors[i] = load(codes + 64 * i);
  } else {
    const __m512i low = _mm512_set1_epi8(15);
    EDGEBLT_UNROLL for (int i = 0; i < 2; ++i) {
      const __m512i both = load(codes + 64 * i);
      vectors[2 * i] = _mm512_and_si512(both, low);
      vectors[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
  }
}

// A block's zero points with their signs changed, 16 bits in each lane, to be multiplied by sums of inputs.
template <int kBits>
inline __m512i negative_zero_points(const DenseWeights& weights, int64_t block) {
  const __m512i low = _mm512_set1_epi32(0xffff);
  if (!weights.zero_points) return _mm512_set1_epi32(-(1 << (kBits - 1)) & 0xffff);
  __m128i points;
  if constexpr (kBits == 8) {
    points = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights.zero_points + block * kGroup));
  } else {
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights.zero_points + block * kGroup / 2));
    points = _mm_and_si128(_mm_unpacklo_epi64(both, _mm_srli_epi16(both, 4)), _mm_set1_epi8(15));
  }
  return _mm512_and_si512(_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_cvtepu8_epi32(points)), low);
}

inline __m512 load_scales(const Scales& scales, int64_t index) {
  if (!scales.half) return _mm512_loadu_ps(static_cast<const float*>(scales.values) + index);
  const uint16_t* halves = static_cast<const uint16_t*>(scales.values) + index;
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

template <int kBits, int kRows>
void multiply(const DenseWeights& weights, const Inputs& inputs, int64_t row, int64_t first, int64_t last, float* out) {
  constexpr int kChains = kRows == 1 ? 4 : kRows <= 3 ? 2 : 1;  // sums that do not wait for each other
  const int64_t steps = weights.block_size / kStep, stride = inputs.stride;
  const uint8_t* codes = weights.codes + first * weights.blocks * weights.block_bytes();
  for (int64_t group = first; group < last; ++group) {
    const int8_t* in = inputs.codes + row * inputs.columns;
    const float* scales = inputs.scales + row * stride;
    const int32_t* input_sums = inputs.sums + row * stride;
    __m512 totals[kRows];
    EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) totals[m] = _mm512_setzero_ps();
    for (int64_t block = 0; block < weights.blocks; ++block, ++scales, ++input_sums) {
      const __m512i points = negative_zero_points<kBits>(weights, group * weights.blocks + block);
      __m512i sums[kRows][kChains];
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        sums[m][0] = _mm512_madd_epi16(points, _mm512_set1_epi32(input_sums[m * stride]));
        EDGEBLT_UNROLL for (int i = 1; i < kChains; ++i) sums[m][i] = _mm512_setzero_si512();
      }
      for (int64_t step = 0; step < steps; ++step, codes += kStep * kGroup * kBits / 8, in += kStep) {
        __m512i vectors[4];
        load_step<kBits>(codes, vectors);
        EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
          int32_t fours[4];
          std::memcpy(fours, in + m * inputs.columns, sizeof fours);
          EDGEBLT_UNROLL for (int i = 0; i < 4; ++i) {
            __m512i& sum = sums[m][i % kChains];
            sum = _mm512_dpbusd_epi32(sum, vectors[i], _mm512_set1_epi32(fours[i]));
          }
        }
      }
      const __m512 block_scales = load_scales(weights.scales, scale_index(weights, group, block));
      EDGEBLT_UNROLL for (int m = 0; m < kRows; ++m) {
        EDGEBLT_UNROLL for (int i = 1; i < kChains; ++i) sums[m][0] = _mm512_add_epi32(sums[m][0], sums[m][i]);
        const __m512 scale = _mm512_mul_ps(block_scales, _mm512_set1_ps(scales[m * stride]));
        totals[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[m][0]), scale, totals[m]);
      }
    }
    const auto inside = static_cast<__mmask16>((1u << rows_of_group(weights, group)) - 1);
    float* place = out + row * weights.rows + group * kGroup;
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
