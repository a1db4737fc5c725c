// Training kernels of Mamba-1: selective scan with its softplus and gate, and causal convolution with its SiLU.
//
// Sixteen channels make one vector, so that sums over states need no shuffles. Tensors are float32, rows of channels:
// [B, T, D] with a stride between rows where one is given. D is a multiple of 16, and there are 16 states.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512DQ__
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16, kStates = 16, kTaps = 4, kChunk = 8;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
typedef float Vector __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));

inline Vector load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

inline Vector splat(float value) { return Vector{} + value; }

// 2 ** x for x <= 0 to about 2e-7 of its value; 0 or nearly so from -126 on.
inline Vector power_of_two(Vector x) {
#ifdef __AVX512DQ__
  const __m512 part = _mm512_reduce_ps((__m512)x, 1);  // x - floor(x)
#else
  x = x < splat(-126.0f) ? splat(-126.0f) : x;
  const Integers whole = __builtin_convertvector(x, Integers) - 1;
  const Vector part = x - __builtin_convertvector(whole, Vector);
#endif
  Vector value = (Vector)part * 1.8775767e-3f + 8.9893397e-3f;
  value = value * part + 5.5826318e-2f;
  value = value * part + 2.4015361e-1f;
  value = value * part + 6.9315308e-1f;
  value = value * part + 0.99999994f;
#ifdef __AVX512DQ__
  return (Vector)_mm512_scalef_ps((__m512)value, (__m512)x);  // times 2 ** floor(x)
#else
  const Integers scale = (whole + 127) << 23;
  Vector factor;
  std::memcpy(&factor, &scale, sizeof factor);
  return value * factor;
#endif
}

inline Vector exponential(Vector x) { return power_of_two(x * kLog2E); }

inline Vector sigmoid(Vector x) {
  Vector small = exponential(x < splat(0.0f) ? x : -x);
  return (x < splat(0.0f) ? small : splat(1.0f)) / (1.0f + small);
}

inline Vector softplus(Vector x) {
  Vector small = exponential(x < splat(0.0f) ? x : -x), result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = log1pf(small[lane]);
  return result + (x < splat(0.0f) ? splat(0.0f) : x);
}

inline float total(const float* lanes) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

}  // namespace

extern "C" {

// y[b, t, d] = (C[b, t] . s + skip[d] x) silu(z),  s = exp(step A[d]) s + step x B[b, t],  step = softplus(raw)
// decay: A transposed, [16, D].  starts: states before every 8th step, [B, ceil(T / 8), D / 16, 16, 16 lanes].
// steps: softplus(raw) [B, T, D], kept for the backward pass.  z has `z_stride` floats a row.
void scan_forward(int64_t batch, int64_t length, int64_t channels, const float* x, const float* raw, const float* decay,
                  const float* inputs, const float* outputs, const float* skip, const float* z, int64_t z_stride,
                  float* y, float* steps, float* starts) {
  const int64_t chunks = (length + kChunk - 1) / kChunk, blocks = channels / kLanes;
  std::vector<float> states(channels * kStates);
  for (int64_t b = 0; b < batch; ++b) {
    std::fill(states.begin(), states.end(), 0.0f);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      float* kept = starts + (b * chunks + chunk) * channels * kStates;
      std::memcpy(kept, states.data(), states.size() * sizeof(float));
      const int64_t begin = chunk * kChunk, end = begin + kChunk < length ? begin + kChunk : length;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kLanes;
        Vector state[kStates], rates[kStates];
        for (int n = 0; n < kStates; ++n) {
          rates[n] = load(decay + n * channels + first) * kLog2E;  // for powers of two
          state[n] = load(&states[(block * kStates + n) * kLanes]);
        }
        const Vector direct = load(skip + first);
        for (int64_t t = begin; t < end; ++t) {
          const int64_t row = b * length + t, at = row * channels + first;
          const Vector value = load(x + at), step = softplus(load(raw + at)), gate = load(z + row * z_stride + first);
          store(steps + at, step);
          const Vector scaled = step * value;
          Vector sum = direct * value;
#pragma GCC unroll 16
          for (int n = 0; n < kStates; ++n) {
            state[n] = power_of_two(step * rates[n]) * state[n] + scaled * inputs[row * kStates + n];
            sum += state[n] * outputs[row * kStates + n];
          }
          store(y + at, sum * gate * sigmoid(gate));
        }
        for (int n = 0; n < kStates; ++n) store(&states[(block * kStates + n) * kLanes], state[n]);
      }
    }
  }
}

// Gradients of all inputs of scan_forward from that of y; d_decay [16, D] and d_skip [D] are added to.
void scan_backward(int64_t batch, int64_t length, int64_t channels, const float* x, const float* raw,
                   const float* decay, const float* inputs, const float* outputs, const float* skip, const float* z,
                   int64_t z_stride, const float* steps, const float* starts, const float* d_y, float* d_x,
                   float* d_raw, float* d_decay, float* d_inputs, float* d_outputs, float* d_skip, float* d_z) {
  const int64_t chunks = (length + kChunk - 1) / kChunk, blocks = channels / kLanes;
  constexpr int kWhole = kStates * kLanes;
  std::vector<float> later(channels * kStates), states((kChunk + 1) * kWhole), factors(kChunk * kWhole);
  std::vector<float> for_inputs(kChunk * kWhole), for_outputs(kChunk * kWhole);
  for (int64_t b = 0; b < batch; ++b) {
    std::fill(later.begin(), later.end(), 0.0f);
    for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
      const int64_t begin = chunk * kChunk, size = length - begin < kChunk ? length - begin : kChunk;
      std::fill(for_inputs.begin(), for_inputs.end(), 0.0f);
      std::fill(for_outputs.begin(), for_outputs.end(), 0.0f);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kLanes;
        const float* kept = starts + ((b * chunks + chunk) * blocks + block) * kWhole;
        Vector state[kStates], rates[kStates];
        for (int n = 0; n < kStates; ++n) {
          rates[n] = load(decay + n * channels + first) * kLog2E;  // for powers of two
          state[n] = load(kept + n * kLanes);
          store(&states[n * kLanes], state[n]);
        }
        for (int64_t t = 0; t < size; ++t) {
          const int64_t row = b * length + begin + t, at = row * channels + first;
          const Vector step = load(steps + at), scaled = step * load(x + at);
#pragma GCC unroll 16
          for (int n = 0; n < kStates; ++n) {
            const Vector factor = power_of_two(step * rates[n]);
            store(&factors[t * kWhole + n * kLanes], factor);
            state[n] = factor * state[n] + scaled * inputs[row * kStates + n];
            store(&states[(t + 1) * kWhole + n * kLanes], state[n]);
          }
        }
        Vector carried[kStates], for_rates[kStates];
        for (int n = 0; n < kStates; ++n) {
          carried[n] = load(&later[block * kWhole + n * kLanes]);
          for_rates[n] = load(d_decay + n * channels + first);
        }
        const Vector direct = load(skip + first);
        Vector for_skip = load(d_skip + first);
        for (int64_t t = size - 1; t >= 0; --t) {
          const int64_t row = b * length + begin + t, at = row * channels + first;
          const Vector value = load(x + at), step = load(steps + at), gate = load(z + row * z_stride + first);
          const Vector open = sigmoid(gate), given = load(d_y + at), scaled = step * value;
          const Vector wanted = given * gate * open;
          Vector sum = direct * value, for_scaled = {}, for_step = {};
#pragma GCC unroll 16
          for (int n = 0; n < kStates; ++n) {
            const int64_t place = t * kWhole + n * kLanes;
            const Vector now = load(&states[place + kWhole]), factor = load(&factors[place]);
            const float in = inputs[row * kStates + n], out = outputs[row * kStates + n];
            sum += now * out;
            store(&for_outputs[place], load(&for_outputs[place]) + wanted * now);
            const Vector gradient = carried[n] + wanted * out;
            store(&for_inputs[place], load(&for_inputs[place]) + gradient * scaled);
            for_scaled += gradient * in;
            carried[n] = gradient * factor;
            const Vector exponent = carried[n] * load(&states[place]);
            for_step += exponent * rates[n];
            for_rates[n] += exponent * step;
          }
          store(d_z + at, given * sum * open * (1.0f + gate * (1.0f - open)));
          store(d_x + at, for_scaled * step + wanted * direct);
          store(d_raw + at, (for_step * kLn2 + for_scaled * value) * sigmoid(load(raw + at)));
          for_skip += wanted * value;
        }
        store(d_skip + first, for_skip);
        for (int n = 0; n < kStates; ++n) {
          store(&later[block * kWhole + n * kLanes], carried[n]);
          store(d_decay + n * channels + first, for_rates[n]);
        }
      }
      for (int64_t t = 0; t < size; ++t) {
        for (int n = 0; n < kStates; ++n) {
          const int64_t place = t * kWhole + n * kLanes, to = (b * length + begin + t) * kStates + n;
          d_inputs[to] = total(&for_inputs[place]);
          d_outputs[to] = total(&for_outputs[place]);
        }
      }
    }
  }
}

// y[b, t, d] = silu(bias[d] + sum over k of kernel[k, d] u[b, t - 3 + k, d]); `u` has `stride` floats a row.
void convolution_forward(int64_t batch, int64_t length, int64_t channels, const float* u, int64_t stride,
                         const float* kernel, const float* bias, float* y) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t first = 0; first < channels; first += kLanes) {
      Vector taps[kTaps], before[kTaps] = {};
      for (int k = 0; k < kTaps; ++k) taps[k] = load(kernel + k * channels + first);
      const Vector shift = load(bias + first);
      for (int64_t t = 0; t < length; ++t) {
        for (int k = 0; k + 1 < kTaps; ++k) before[k] = before[k + 1];
        before[kTaps - 1] = load(u + (b * length + t) * stride + first);
        Vector sum = shift;
        for (int k = 0; k < kTaps; ++k) sum += taps[k] * before[k];
        store(y + (b * length + t) * channels + first, sum * sigmoid(sum));
      }
    }
  }
}

// Gradients of all inputs of convolution_forward from that of y; d_kernel [4, D] and d_bias [D] are added to.
void convolution_backward(int64_t batch, int64_t length, int64_t channels, const float* u, int64_t stride,
                          const float* kernel, const float* bias, const float* d_y, float* d_u, float* d_kernel,
                          float* d_bias) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t first = 0; first < channels; first += kLanes) {
      Vector taps[kTaps], before[kTaps] = {}, for_taps[kTaps], later[kTaps] = {};
      for (int k = 0; k < kTaps; ++k) {
        taps[k] = load(kernel + k * channels + first);
        for_taps[k] = load(d_kernel + k * channels + first);
      }
      const Vector shift = load(bias + first);
      Vector for_bias = load(d_bias + first);
      // later[j]: what is known so far of the gradient of row t - 3 + j; row t - 3 is complete after step t.
      for (int64_t t = 0; t < length + kTaps - 1; ++t) {
        for (int k = 0; k + 1 < kTaps; ++k) {
          before[k] = before[k + 1];
          later[k] = later[k + 1];
        }
        later[kTaps - 1] = Vector{};
        if (t < length) {
          before[kTaps - 1] = load(u + (b * length + t) * stride + first);
          Vector sum = shift;
          for (int k = 0; k < kTaps; ++k) sum += taps[k] * before[k];
          const Vector open = sigmoid(sum);
          const Vector gradient =
              load(d_y + (b * length + t) * channels + first) * open * (1.0f + sum * (1.0f - open));
          for (int k = 0; k < kTaps; ++k) {
            for_taps[k] += gradient * before[k];
            later[k] += gradient * taps[k];
          }
          for_bias += gradient;
        }
        if (t >= kTaps - 1) store(d_u + (b * length + t - kTaps + 1) * channels + first, later[0]);
      }
      store(d_bias + first, for_bias);
      for (int k = 0; k < kTaps; ++k) store(d_kernel + k * channels + first, for_taps[k]);
    }
  }
}

}  // extern "C"
