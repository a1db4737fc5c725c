// Loops of the recurrent operators, for every level to compile for its instructions. In an unnamed namespace for the
// reason given in common.h.
#ifndef EDGEBLT_RECURRENCE_ROWS_H
#define EDGEBLT_RECURRENCE_ROWS_H

#include "recurrence.h"
#include "rows.h"

namespace edgeblt {
namespace {

template <int kCount>
EDGEBLT_INLINE Floats<kCount> exponential_of_minus_size(const Floats<kCount>& x) {
  return exponential_or_zero<kCount>(x > 0 ? -x : x);
}

template <int kCount>
EDGEBLT_INLINE Floats<kCount> silu(const Floats<kCount>& x) {
  const auto one = repeat<kCount>(1);
  const Floats<kCount> small = exponential_of_minus_size<kCount>(x);
  return x * ((x > 0 ? one : small) / (small + 1.0F));
}

// log(1 + e ** x). With s = e / (2 + e) for e <= 1, log(1 + e) = 2 (s + s ** 3 / 3 + s ** 5 / 5 + ...), s ** 2 <= 1/9.
template <int kCount>
EDGEBLT_INLINE Floats<kCount> softplus(const Floats<kCount>& x) {
  const auto all = [](float value) __attribute__((always_inline)) { return repeat<kCount>(value); };
  const Floats<kCount> small = exponential_of_minus_size<kCount>(x);
  const Floats<kCount> s = small / (small + 2.0F), square = s * s;
  Floats<kCount> sum = all(1.0F / 15);
  for (const float term : {1.0F / 13, 1.0F / 11, 1.0F / 9, 1.0F / 7, 1.0F / 5, 1.0F / 3, 1.0F}) {
    sum = fused<kCount>(sum, square, all(term));
  }
  return fused<kCount>(s + s, sum, x > 0 ? x : all(0));
}

template <int kCount>
inline void convolve_rows(const ConvolutionRows& call, int64_t first, int64_t last) {
  const int64_t channels = call.channels;
  for (int64_t channel = first; channel < last; channel += kCount) {
    const int64_t left = last - channel;
    Floats<kCount> kernel[kTaps], taps[kTaps];
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      kernel[tap] = lanes_or_zeros<kCount>(call.kernel + tap * channels + channel, left);
    }
    for (int64_t tap = 0; tap < kTaps - 1; ++tap) {
      taps[tap] = lanes_or_zeros<kCount>(call.past + tap * channels + channel, left);
    }
    const Floats<kCount> bias = lanes_or_zeros<kCount>(call.bias + channel, left);
    for (int64_t row = 0; row < call.rows; ++row) {
      taps[kTaps - 1] = lanes_or_zeros<kCount>(call.split + row * 2 * channels + channel, left);
      Floats<kCount> total = bias;
      for (int64_t tap = 0; tap < kTaps; ++tap) total = fused<kCount>(kernel[tap], taps[tap], total);
      store_lanes<kCount>(silu<kCount>(total), left, call.out + row * channels + channel);
      for (int64_t tap = 0; tap < kTaps - 1; ++tap) taps[tap] = taps[tap + 1];
    }
    for (int64_t tap = 0; tap < kTaps - 1; ++tap) {
      store_lanes<kCount>(taps[tap], left, call.present + tap * channels + channel);
    }
  }
}

template <int kCount>
inline void scan_rows(const ScanRows& call, int64_t first, int64_t last) {
  const int64_t channels = call.channels, states = call.states, width = call.rank + 2 * states;
  Floats<kCount> state[kMostStates];
  for (int64_t channel = first; channel < last; channel += kCount) {
    const int64_t left = last - channel;
    for (int64_t n = 0; n < states; ++n) state[n] = lanes_or_zeros<kCount>(call.past + n * channels + channel, left);
    const Floats<kCount> bias = lanes_or_zeros<kCount>(call.step_bias + channel, left);
    const Floats<kCount> skip = lanes_or_zeros<kCount>(call.skip + channel, left);
    for (int64_t row = 0; row < call.rows; ++row) {
      const int64_t place = row * channels + channel;
      const Floats<kCount> x = lanes_or_zeros<kCount>(call.x + place, left);
      const Floats<kCount> step = softplus<kCount>(lanes_or_zeros<kCount>(call.step + place, left) + bias);
      const Floats<kCount> scaled = step * x;
      const float* given = call.selected + row * width + call.rank;
      const float* read = given + states;
      Floats<kCount> total = skip * x;
      for (int64_t n = 0; n < states; ++n) {
        const Floats<kCount> power = step * lanes_or_zeros<kCount>(call.decay + n * channels + channel, left);
        const Floats<kCount> kept = exponential_or_zero<kCount>(power < 0 ? power : repeat<kCount>(0));
        state[n] = fused<kCount>(kept, state[n], scaled * given[n]);
        total = fused<kCount>(state[n], repeat<kCount>(read[n]), total);
      }
      const Floats<kCount> gate = lanes_or_zeros<kCount>(call.split + row * 2 * channels + channels + channel, left);
      store_lanes<kCount>(total * silu<kCount>(gate), left, call.out + place);
    }
    for (int64_t n = 0; n < states; ++n) store_lanes<kCount>(state[n], left, call.present + n * channels + channel);
  }
}

}  // namespace
}  // namespace edgeblt

#endif
