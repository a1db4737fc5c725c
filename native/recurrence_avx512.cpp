// Recurrent operators with AVX-512 and fused products.
#include "recurrence_rows.h"

namespace edgeblt {

const RecurrenceKernels kAvx512Recurrence = {convolve_rows<16>, scan_rows<16>};

}  // namespace edgeblt
