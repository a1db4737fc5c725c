// The tables of AVX2, and of AVX2 with AVX-VNNI for dense products.
#include "avx2.h"
#include "dense.h"

namespace edgeblt {

const Kernels kAvx2Kernels = {4, no_rows, quantize_row, dense_avx2, sparse_avx2, masked_avx2, entropies_avx2, attend_avx2, store_row_avx2,
                              normalize_avx2, gate_avx2, attend_latent_avx2, attend_bytes_avx2, add_table_row_avx2};
#if !defined(EDGEBLT_NO_AVXVNNI)
const Kernels kAvxVnniKernels = {6, no_rows, quantize_row, dense_avxvnni, sparse_avx2, masked_avx2, entropies_avx2, attend_avx2, store_row_avx2,
                                 normalize_avx2, gate_avx2, attend_latent_avx2, attend_bytes_avx2, add_table_row_avx2};
#endif

}  // namespace edgeblt
