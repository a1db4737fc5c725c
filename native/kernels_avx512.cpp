// The tables of AVX-512, and of AVX-512 with AMX for dense products of many rows.
#include "avx512.h"
#include "dense.h"

namespace edgeblt {

const Kernels kAvx512Kernels = {16, no_rows, quantize_row, dense_avx512, sparse_avx512, masked_avx512, entropies_avx512,
                                attend_avx512, store_row_avx512, normalize_avx512, gate_avx512, attend_latent_avx512, attend_bytes_avx512, add_table_row_avx512};
#if !defined(EDGEBLT_NO_AMX)
const Kernels kAmxKernels = {16, amx_rows, quantize_row, dense_amx, sparse_avx512, masked_avx512, entropies_avx512,
                             attend_avx512, store_row_avx512, normalize_avx512, gate_avx512, attend_latent_avx512, attend_bytes_avx512, add_table_row_avx512};
#endif

}  // namespace edgeblt
