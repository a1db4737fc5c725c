// Rounds of the recurrent operators' kernels.
#ifndef EDGEBLT_RECURRENCE_ROUNDS_H
#define EDGEBLT_RECURRENCE_ROUNDS_H

#include "../recurrence.h"

namespace edgeblt {

// Both kernels on random shapes and values, against double precision: all channels at once and in two parts, all rows
// at once and one by one from state to state, which must give the same bits. Ends the process where they do not.
void recurrence_rounds(const char* level, const RecurrenceKernels& table, uint32_t seed);

}  // namespace edgeblt

#endif
