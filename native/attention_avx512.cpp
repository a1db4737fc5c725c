// Attention with AVX-512 and fused products.
#include "attention.h"

namespace edgeblt {

void attend_avx512(const Attention& call, int64_t head, int64_t first, int64_t last) {
  attend_rows_of_head(call, head, first, last);
}

}  // namespace edgeblt
