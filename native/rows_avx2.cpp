// Rows of layers with AVX2 and fused products.
#include "rows.h"

namespace edgeblt {

void normalize_avx2(
    const float* values, const float* addend, const float* weight, int64_t width, float epsilon, float* total,
    float* out) {
  normalize_row<8>(values, addend, weight, width, epsilon, total, out);
}

void gate_avx2(const float* gate, const float* up, int64_t width, float* out) { gate_row<8>(gate, up, width, out); }

void attend_latent_avx2(
    const LatentAttention& call, const float* queries, const float* row, int64_t bytes, float* out) {
  attend_vectors(call, queries, row, bytes, out);
}

void attend_bytes_avx2(
    const LatentAttention& call, const float* queries, const float* rows, int64_t count, float* out) {
  attend_patch(call, queries, rows, count, out);
}

void add_table_row_avx2(const Table& table, int64_t row, float* out) { add_row(table, row, out); }

}  // namespace edgeblt
