// Attention with AVX-512 and fused products.
#include "attention.h"

namespace edgeblt {

void attend_avx512(const Attention& call, int64_t kv_head, int64_t first, int64_t last) {
  attend_rows<16>(call, kv_head, first, last);
}

void store_row_avx512(
    const Attention& call, const float* projected, const float* cosines, const float* sines, int64_t row) {
  store_row(call, projected, cosines, sines, row);
}

}  // namespace edgeblt
