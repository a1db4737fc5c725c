// The recurrent parts of a Mamba layer: export/operators/recurrence.py says what they compute. Arrays of states are
// [states, channels], so that a vector holds channels side by side; each channel's numbers depend on no other channel,
// and each byte's are computed alike whatever the chunk.
#ifndef EDGEBLT_RECURRENCE_H
#define EDGEBLT_RECURRENCE_H

#include <cstdint>

#include "levels.h"

namespace edgeblt {

constexpr int64_t kTaps = 4;          // inputs of the convolution
constexpr int64_t kMostStates = 256;  // of a channel

struct ConvolutionRows {
  int64_t rows, channels;
  const float* split;   // [rows, 2 channels], of which the first half is read
  const float* past;    // [kTaps - 1, channels]
  const float* kernel;  // [kTaps, channels]
  const float* bias;    // [channels]
  float* out;           // [rows, channels]
  float* present;       // [kTaps - 1, channels]
};

struct ScanRows {
  int64_t rows, channels, states, rank;
  const float* x;         // [rows, channels]
  const float* split;     // [rows, 2 channels], of which the second half is the gate
  const float* step;      // [rows, channels]
  const float* selected;  // [rows, rank + 2 states]
  const float* step_bias;
  const float* decay;     // [states, channels]
  const float* skip;
  const float* past;      // [states, channels]
  float* out;             // [rows, channels]
  float* present;         // [states, channels]
};

// Both for channels [first, last); `first` is a multiple of 16.
struct RecurrenceKernels {
  void (*convolve)(const ConvolutionRows&, int64_t first, int64_t last);
  void (*scan)(const ScanRows&, int64_t first, int64_t last);
};

const RecurrenceKernels& recurrence_kernels(Level level);

extern const RecurrenceKernels kAvx2Recurrence;
extern const RecurrenceKernels kAvx512Recurrence;

}  // namespace edgeblt

#endif
