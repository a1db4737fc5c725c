// Recurrent operators with AVX2 and fused products.
#include "recurrence_rows.h"

namespace edgeblt {

const RecurrenceKernels kAvx2Recurrence = {convolve_rows<8>, scan_rows<8>};

}  // namespace edgeblt
