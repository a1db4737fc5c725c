// The tables of NEON, and of NEON with matrix products of bytes for dense products.
#include "attention.h"
#include "dense.h"
#include "neon.h"
#include "rows.h"

namespace edgeblt {

const Kernels kNeonKernels = {4, narrow_tile_width, quantize_row, dense_neon, sparse_neon, masked_neon, entropy_rows, attend_rows<4>, store_row,
                              normalize_row<8>, gate_row<8>, attend_vectors, attend_patch, add_row};
#if !defined(EDGEBLT_NO_I8MM)
const Kernels kI8mmKernels = {4, narrow_tile_width, quantize_row, dense_i8mm, sparse_neon, masked_neon, entropy_rows, attend_rows<4>, store_row,
                              normalize_row<8>, gate_row<8>, attend_vectors, attend_patch, add_row};
#endif

}  // namespace edgeblt
