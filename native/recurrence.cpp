// edgeblt::CausalConvolution and edgeblt::SelectiveScan. export/operators/recurrence.py has the same in standard
// operators.
#include "recurrence.h"

#include <algorithm>

#include "operator.h"
#include "recurrence_rows.h"
#include "tasks.h"

namespace edgeblt {
namespace {

const RecurrenceKernels kScalarRecurrence = {convolve_rows<8>, scan_rows<8>};
constexpr int64_t kChannelUnit = 16;

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data); }

// Tasks of so many products in all, each of some channels.
template <typename Function>
void by_channels(const Call& call, int64_t channels, double products, const Function& function) {
  const Portions portions(channels, kChannelUnit, wanted_tasks(products));
  call.parallel(static_cast<size_t>(portions.count), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * portions.size;
    function(first, std::min(channels, first + portions.size));
  });
}

class CausalConvolution final : public Kernel {
 public:
  explicit CausalConvolution(const Node& node) : channels_(node.attribute("channels", 1, kMostSize)) {}

  void compute(const Call& call) override {
    const Tensor split = call.input(0), past = call.input(1), kernel = call.input(2), bias = call.input(3);
    require(split, "split", ort::kFloat, {-1, 2 * channels_});
    require(past, "past", ort::kFloat, {kTaps - 1, channels_});
    require(kernel, "kernel", ort::kFloat, {kTaps, channels_});
    require(bias, "bias", ort::kFloat, {channels_});
    const int64_t rows = split.shape[0];
    const ConvolutionRows given = {
        rows, channels_, floats(split), floats(past), floats(kernel), floats(bias),
        call.output<float>(0, {rows, channels_}), call.output<float>(1, {kTaps - 1, channels_})};
    const auto& table = recurrence_kernels(current_level());
    by_channels(call, channels_, static_cast<double>(rows) * static_cast<double>(channels_) * 16,
                [&](int64_t first, int64_t last) { table.convolve(given, first, last); });
  }

 private:
  int64_t channels_;
};

class SelectiveScan final : public Kernel {
 public:
  explicit SelectiveScan(const Node& node)
      : channels_(node.attribute("channels", 1, kMostSize)),
        states_(node.attribute("states", 1, kMostStates)),
        rank_(node.attribute("rank", 1, kMostSize)) {}

  void compute(const Call& call) override {
    const Tensor x = call.input(0), split = call.input(1), step = call.input(2), selected = call.input(3);
    const Tensor step_bias = call.input(4), decay = call.input(5), skip = call.input(6), past = call.input(7);
    require(x, "x", ort::kFloat, {-1, channels_});
    const int64_t rows = x.shape[0];
    require(split, "split", ort::kFloat, {rows, 2 * channels_});
    require(step, "step", ort::kFloat, {rows, channels_});
    require(selected, "selected", ort::kFloat, {rows, rank_ + 2 * states_});
    require(step_bias, "step_bias", ort::kFloat, {channels_});
    require(decay, "decay", ort::kFloat, {states_, channels_});
    require(skip, "skip", ort::kFloat, {channels_});
    require(past, "past", ort::kFloat, {states_, channels_});
    const ScanRows given = {
        rows, channels_, states_, rank_, floats(x), floats(split), floats(step), floats(selected), floats(step_bias),
        floats(decay), floats(skip), floats(past), call.output<float>(0, {rows, channels_}),
        call.output<float>(1, {states_, channels_})};
    const auto& table = recurrence_kernels(current_level());
    const double products = static_cast<double>(rows) * static_cast<double>(channels_) * static_cast<double>(states_);
    by_channels(call, channels_, products * 8,
                [&](int64_t first, int64_t last) { table.scan(given, first, last); });
  }

 private:
  int64_t channels_, states_, rank_;
};

}  // namespace

const RecurrenceKernels& recurrence_kernels([[maybe_unused]] Level level) {
#if defined(__x86_64__)
  if (level == kAvx512 || level == kAmx) return kAvx512Recurrence;
  if (level == kAvx2 || level == kAvxVnni) return kAvx2Recurrence;
#endif
  return kScalarRecurrence;
}

const Operator& causal_convolution_operator() {
  using namespace ort;
  static const Operator op(
      "CausalConvolution", 12, {kFloat, kFloat, kFloat, kFloat}, 4, {kFloat, kFloat},
      [](const Node& node) -> Kernel* { return new CausalConvolution(node); });
  return op;
}

const Operator& selective_scan_operator() {
  using namespace ort;
  static const Operator op(
      "SelectiveScan", 13, {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat}, 8, {kFloat, kFloat},
      [](const Node& node) -> Kernel* { return new SelectiveScan(node); });
  return op;
}

}  // namespace edgeblt
