// The choice of an N:M kernel by what its weights are. In an unnamed namespace for common.h's reason.
#ifndef EDGEBLT_SPARSE_FORMS_H
#define EDGEBLT_SPARSE_FORMS_H

#include "common.h"

namespace edgeblt {
namespace {

template <typename Level, int kGroup, int kBits>
inline void sparse_of_block(
    const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  switch (weights.block_size) {
    case 16: return Level::template run<kGroup, kBits, 16>(weights, inputs, first, last, out);
    case 32: return Level::template run<kGroup, kBits, 32>(weights, inputs, first, last, out);
    case 64: return Level::template run<kGroup, kBits, 64>(weights, inputs, first, last, out);
    case 128: return Level::template run<kGroup, kBits, 128>(weights, inputs, first, last, out);
    default: return Level::template run<kGroup, kBits, 256>(weights, inputs, first, last, out);
  }
}

// Calls Level::run<group, bits, block size>.
template <typename Level>
inline void sparse_of_form(
    const SparseWeights& weights, const Inputs& inputs, int64_t first, int64_t last, float* out) {
  if (weights.group == 4 && weights.bits == 8) return sparse_of_block<Level, 4, 8>(weights, inputs, first, last, out);
  if (weights.group == 4) return sparse_of_block<Level, 4, 4>(weights, inputs, first, last, out);
  if (weights.bits == 8) return sparse_of_block<Level, 8, 8>(weights, inputs, first, last, out);
  return sparse_of_block<Level, 8, 4>(weights, inputs, first, last, out);
}

}  // namespace
}  // namespace edgeblt

#endif
