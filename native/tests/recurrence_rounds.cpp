// Buffers are exactly as long as the operators promise, so that sanitizers find a number read beyond them.
#include "recurrence_rounds.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "difference.h"

namespace edgeblt {
namespace {

using Numbers = std::vector<float>;

double silu(double x) { return x / (1 + std::exp(-x)); }

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

class Round {
 public:
  Round(const char* level, const RecurrenceKernels& table, uint32_t seed) : level_(level), table_(table), chance_(seed) {
    rows_ = any(1, 9), channels_ = any(1, 70), states_ = any(1, 20), rank_ = any(1, 5);
  }

  void convolution() {
    const Numbers split = random(rows_ * 2 * channels_), past = random((kTaps - 1) * channels_);
    const Numbers kernel = random(kTaps * channels_), bias = random(channels_);
    const auto run = [&](int64_t first, int64_t count, const Numbers& before, int64_t cut, Numbers& present) {
      Numbers out(static_cast<size_t>(count * channels_));
      present.assign(before.size(), 0);
      const ConvolutionRows given = {count, channels_, split.data() + first * 2 * channels_, before.data(),
                                     kernel.data(), bias.data(), out.data(), present.data()};
      table_.convolve(given, 0, cut);
      table_.convolve(given, cut, channels_);
      return out;
    };
    Numbers wanted(static_cast<size_t>(rows_ * channels_)), state(past.size());
    const auto input = [&](int64_t row, int64_t channel) {
      return row < 0 ? past[static_cast<size_t>((row + kTaps - 1) * channels_ + channel)]
                     : split[static_cast<size_t>(row * 2 * channels_ + channel)];
    };
    for (int64_t channel = 0; channel < channels_; ++channel) {
      for (int64_t row = 0; row < rows_; ++row) {
        double total = bias[static_cast<size_t>(channel)];
        for (int64_t tap = 0; tap < kTaps; ++tap) {
          total += double{kernel[static_cast<size_t>(tap * channels_ + channel)]} * input(row + tap - kTaps + 1, channel);
        }
        wanted[static_cast<size_t>(row * channels_ + channel)] = static_cast<float>(silu(total));
      }
      for (int64_t tap = 0; tap < kTaps - 1; ++tap) {
        state[static_cast<size_t>(tap * channels_ + channel)] = input(rows_ + tap - kTaps + 1, channel);
      }
    }
    check("a convolution", run, past, wanted, state);
  }

  void scan() {
    const Numbers x = random(rows_ * channels_), split = random(rows_ * 2 * channels_), step = random(rows_ * channels_);
    const Numbers selected = random(rows_ * (rank_ + 2 * states_)), step_bias = random(channels_);
    const Numbers skip = random(channels_), past = random(states_ * channels_);
    Numbers decay = random(states_ * channels_);
    for (float& value : decay) value = -std::fabs(value);
    const int64_t width = rank_ + 2 * states_;
    const auto run = [&](int64_t first, int64_t count, const Numbers& before, int64_t cut, Numbers& present) {
      Numbers out(static_cast<size_t>(count * channels_));
      present.assign(before.size(), 0);
      const ScanRows given = {count, channels_, states_, rank_, x.data() + first * channels_,
                              split.data() + first * 2 * channels_, step.data() + first * channels_,
                              selected.data() + first * width, step_bias.data(), decay.data(), skip.data(),
                              before.data(), out.data(), present.data()};
      table_.scan(given, 0, cut);
      table_.scan(given, cut, channels_);
      return out;
    };
    Numbers wanted(static_cast<size_t>(rows_ * channels_)), last(past.size());
    for (int64_t channel = 0; channel < channels_; ++channel) {
      const auto at = [&](const Numbers& numbers, int64_t row, int64_t stride) {
        return double{numbers[static_cast<size_t>(row * stride + channel)]};
      };
      std::vector<double> state;
      for (int64_t n = 0; n < states_; ++n) state.push_back(at(past, n, channels_));
      for (int64_t row = 0; row < rows_; ++row) {
        const double wide = softplus(at(step, row, channels_) + step_bias[static_cast<size_t>(channel)]);
        const float* given = selected.data() + row * width + rank_;
        double total = skip[static_cast<size_t>(channel)] * at(x, row, channels_);
        for (int64_t n = 0; n < states_; ++n) {
          double& one = state[static_cast<size_t>(n)];
          one = std::exp(wide * at(decay, n, channels_)) * one + wide * at(x, row, channels_) * given[n];
          total += one * given[states_ + n];
        }
        const double gate = split[static_cast<size_t>(row * 2 * channels_ + channels_ + channel)];
        wanted[static_cast<size_t>(row * channels_ + channel)] = static_cast<float>(total * silu(gate));
      }
      for (int64_t n = 0; n < states_; ++n) {
        last[static_cast<size_t>(n * channels_ + channel)] = static_cast<float>(state[static_cast<size_t>(n)]);
      }
    }
    check("a scan", run, past, wanted, last);
  }

 private:
  int64_t any(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(chance_); }

  Numbers random(int64_t count) {
    std::normal_distribution<float> normal(0, any(0, 9) ? 1.0F : 20.0F);  // wide ones, where exponentials end
    Numbers numbers(static_cast<size_t>(count));
    for (float& value : numbers) value = normal(chance_);
    return numbers;
  }

  template <typename Run>
  void check(const char* what, const Run& run, const Numbers& past, const Numbers& wanted, const Numbers& last) {
    Numbers present, state = past;
    const Numbers whole = run(0, rows_, past, channels_, present);
    near(what, whole, wanted);
    near(what, present, last);
    const Numbers parts = run(0, rows_, past, channels_ / 2 / 16 * 16, state);
    same(what, parts, whole);
    same(what, state, present);
    state = past;
    for (int64_t row = 0; row < rows_; ++row) {
      Numbers next;
      const Numbers out = run(row, 1, state, channels_, next);
      same(what, out, Numbers(whole.begin() + row * channels_, whole.begin() + (row + 1) * channels_));
      state = next;
    }
    same(what, state, present);
  }

  void near(const char* what, const Numbers& found, const Numbers& wanted) {
    double largest = 1e-30, error = 0;
    for (size_t i = 0; i < wanted.size(); ++i) {
      largest = std::max(largest, std::fabs(double{wanted[i]}));
      error = std::max(error, difference(wanted[i], found[i]));
    }
    if (!(error <= 1e-5 * largest)) fail(what, "is off by", error / largest);
  }

  void same(const char* what, const Numbers& found, const Numbers& wanted) {
    if (std::memcmp(found.data(), wanted.data(), wanted.size() * sizeof(float))) fail(what, "has other bits in parts", 0);
  }

  void fail(const char* what, const char* how, double error) {
    std::printf("%s at %s %s %g: %ld rows, %ld channels, %ld states, rank %ld\n", what, level_, how, error,
                static_cast<long>(rows_), static_cast<long>(channels_), static_cast<long>(states_),
                static_cast<long>(rank_));
    std::exit(1);
  }

  const char* level_;
  const RecurrenceKernels& table_;
  std::mt19937 chance_;
  int64_t rows_, channels_, states_, rank_;
};

}  // namespace

void recurrence_rounds(const char* level, const RecurrenceKernels& table, uint32_t seed) {
  Round round(level, table, seed);
  round.convolution();
  round.scan();
}

}  // namespace edgeblt
