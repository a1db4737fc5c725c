// edgeblt::CausalConvolution and edgeblt::SelectiveScan. export/operators/recurrence.py has the same in standard
// operators.
#include "recurrence.h"

#include <algorithm>
#include <cstring>

#include "operator.h"
#include "recurrence_rows.h"
#include "tasks.h"

namespace edgeblt {
namespace {

const RecurrenceKernels kScalarRecurrence = {convolve_rows<8>, scan_rows<8>};
constexpr int64_t kChannelUnit = 16;

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data); }

// Rows up to `end` that begin in the state of one slot and leave theirs in that of another.
struct Part {
  int64_t end, from, to;
};

// The states of all slots, [slots, size, channels], or [size, channels] for one, and the parts of a run's rows, in
// their order. Without `sequences` all rows are one part.
class SlotStates {
 public:
  SlotStates(const Call& call, const Tensor& past, const Tensor& sequences, int64_t rows, const Shape& slot)
      : all_{rows, 0, 0}, parts_(&all_), stride_(slot[0] * slot[1]) {
    const bool has_slots = past.shape.size() == 3;
    require(past, "past", ort::kFloat, has_slots ? Shape{-1, slot[0], slot[1]} : slot);
    if (sequences) require(sequences, "sequences", ort::kInt64, {-1, 3});
    const int64_t slots = has_slots ? past.shape[0] : 1;
    const bool is_single = !sequences || sequences.shape[0] == 0;
    if (is_single && slots != 1) {
      throw OperatorError(std::to_string(slots) + " slots, and no sequences in them; open the model again");
    }
    if (!is_single) {
      parts_ = static_cast<const Part*>(sequences.data), count_ = sequences.shape[0];
      check(rows, slots);
    }
    from_ = floats(past), to_ = call.output<float>(1, past.shape);
    if (is_single || from_ == to_) return;
    std::memcpy(to_, from_, static_cast<size_t>(past.count()) * sizeof(float));
    from_ = to_;
  }

  // function(row, rows, past, present) for each part: one may begin in what an earlier one left.
  template <typename Function>
  void each(const Function& function) const {
    for (int64_t part = 0, row = 0; part < count_; row = parts_[part++].end) {
      function(row, parts_[part].end - row, from_ + parts_[part].from * stride_, to_ + parts_[part].to * stride_);
    }
  }

 private:
  // Raises OperatorError where a part has no row or no slot, or some row is of no part.
  void check(int64_t rows, int64_t slots) const {
    const auto has = [&](int64_t slot) { return slot >= 0 && slot < slots; };
    int64_t row = 0;
    for (const Part* part = parts_; part < parts_ + count_; row = part++->end) {
      if (row < part->end && part->end <= rows && has(part->from) && has(part->to)) continue;
      throw OperatorError("sequences of which one ends at row " + std::to_string(part->end) + ", from slot " +
                          std::to_string(part->from) + " to " + std::to_string(part->to) + ", do not fit " +
                          std::to_string(rows) + " rows and " + std::to_string(slots) + " slots; open the model again");
    }
    if (row != rows) {
      throw OperatorError("sequences end at row " + std::to_string(row) + " of " + std::to_string(rows) +
                          "; open the model again");
    }
  }

  const Part all_;
  const Part* parts_;
  int64_t count_ = 1, stride_;
  const float* from_;
  float* to_;
};

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
    const Tensor split = call.input(0), kernel = call.input(2), bias = call.input(3);
    require(split, "split", ort::kFloat, {-1, 2 * channels_});
    require(kernel, "kernel", ort::kFloat, {kTaps, channels_});
    require(bias, "bias", ort::kFloat, {channels_});
    const int64_t rows = split.shape[0];
    float* out = call.output<float>(0, {rows, channels_});
    const SlotStates states(call, call.input(1), call.input(4), rows, {kTaps - 1, channels_});
    const auto& table = recurrence_kernels(current_level());
    const double products = static_cast<double>(rows) * static_cast<double>(channels_) * 16;
    by_channels(call, channels_, products, [&](int64_t first, int64_t last) {
      states.each([&](int64_t row, int64_t count, const float* past, float* present) {
        const int64_t start = row * channels_;
        table.convolve({count, channels_, floats(split) + 2 * start, past, floats(kernel), floats(bias), out + start,
                        present}, first, last);
      });
    });
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
    const Tensor step_bias = call.input(4), decay = call.input(5), skip = call.input(6);
    require(x, "x", ort::kFloat, {-1, channels_});
    const int64_t rows = x.shape[0];
    require(split, "split", ort::kFloat, {rows, 2 * channels_});
    require(step, "step", ort::kFloat, {rows, channels_});
    require(selected, "selected", ort::kFloat, {rows, rank_ + 2 * states_});
    require(step_bias, "step_bias", ort::kFloat, {channels_});
    require(decay, "decay", ort::kFloat, {states_, channels_});
    require(skip, "skip", ort::kFloat, {channels_});
    float* out = call.output<float>(0, {rows, channels_});
    const SlotStates states(call, call.input(7), call.input(8), rows, {states_, channels_});
    const auto& table = recurrence_kernels(current_level());
    const double products = static_cast<double>(rows) * static_cast<double>(channels_) * static_cast<double>(states_);
    by_channels(call, channels_, products * 8, [&](int64_t first, int64_t last) {
      states.each([&](int64_t row, int64_t count, const float* past, float* present) {
        const int64_t start = row * channels_;
        table.scan({count, channels_, states_, rank_, floats(x) + start, floats(split) + 2 * start,
                    floats(step) + start, floats(selected) + row * (rank_ + 2 * states_), floats(step_bias),
                    floats(decay), floats(skip), past, out + start, present}, first, last);
      });
    });
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
      "CausalConvolution", 12, {kFloat, kFloat, kFloat, kFloat, kInt64}, 4, {kFloat, kFloat},
      [](const Node& node) -> Kernel* { return new CausalConvolution(node); });
  return op;
}

const Operator& selective_scan_operator() {
  using namespace ort;
  static const Operator op(
      "SelectiveScan", 13, {kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kFloat, kInt64}, 8,
      {kFloat, kFloat},
      [](const Node& node) -> Kernel* { return new SelectiveScan(node); });
  return op;
}

}  // namespace edgeblt
