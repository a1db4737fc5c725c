// edgeblt::WindowAttention: causal attention within a window over a cache that is written in place, queries and keys
// rotated by the angles of their slots. export/native_ops.py has the same by ONNX Runtime's GroupQueryAttention.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "operator.h"

namespace edgeblt {
namespace {

constexpr int64_t kTaskProducts = 65536;
constexpr int64_t kMostTasks = 16;

class WindowAttention final : public Kernel {
 public:
  explicit WindowAttention(const Node& node)
      : heads_(node.attribute("num_heads")), kv_heads_(node.attribute("kv_num_heads")),
        window_(node.attribute("window")), scale_(node.float_attribute("scale")) {
    if (heads_ < 1 || kv_heads_ < 1 || heads_ % kv_heads_) {
      throw OperatorError(std::to_string(heads_) + " heads do not share " + std::to_string(kv_heads_) +
                          " of keys; export the model again");
    }
    if (window_ == 0 || window_ < -1) throw OperatorError("window is " + std::to_string(window_) + "; use -1 or more");
  }

  void compute(const Call& call) override {
    const Tensor projected = call.input(0), keys = call.input(1), values = call.input(2);
    require(keys, "past_key", ort::kFloat, {1, kv_heads_, -1, -1});
    const int64_t capacity = keys.shape[2], width = keys.shape[3], both = heads_ + 2 * kv_heads_;
    require(values, "past_value", ort::kFloat, keys.shape);
    require(projected, "projected", ort::kFloat, {1, -1, both * width});
    const int64_t rows = projected.shape[1];
    const Tensor total = call.input(4), cosines = call.input(5), sines = call.input(6);
    require(total, "total_length", ort::kInt32, {1});
    require(cosines, "cosines", ort::kFloat, {-1, width / 2});
    require(sines, "sines", ort::kFloat, cosines.shape);
    const int64_t past = *static_cast<const int32_t*>(total.data) - rows;
    if (width % 8 || past < 0 || past + rows > capacity || past + rows > cosines.shape[0]) {
      throw OperatorError(std::to_string(rows) + " positions after " + std::to_string(past) + " do not fit a cache of " +
                          describe(keys.shape) + "; open the model again");
    }
    auto* attended = call.output<float>(0, {1, rows, heads_ * width});
    auto* present_keys = call.output<float>(1, keys.shape);
    auto* present_values = call.output<float>(2, keys.shape);
    keep_past(static_cast<const float*>(keys.data), past, capacity, width, present_keys);
    keep_past(static_cast<const float*>(values.data), past, capacity, width, present_values);
    thread_local std::vector<float> queries;
    if (queries.size() < static_cast<size_t>(rows * heads_ * width)) {
      queries.resize(static_cast<size_t>(rows * heads_ * width));
    }
    const Angles angles{static_cast<const float*>(cosines.data), static_cast<const float*>(sines.data), width / 2};
    const auto* in = static_cast<const float*>(projected.data);
    for (int64_t row = 0; row < rows; ++row, in += both * width) {
      for (int64_t head = 0; head < heads_; ++head) {
        angles.rotate(in + head * width, past + row, queries.data() + (row * heads_ + head) * width);
      }
      for (int64_t head = 0; head < kv_heads_; ++head) {
        const int64_t slot = (head * capacity + past + row) * width;
        angles.rotate(in + (heads_ + head) * width, past + row, present_keys + slot);
        std::memcpy(present_values + slot, in + (heads_ + kv_heads_ + head) * width,
                    static_cast<size_t>(width) * sizeof(float));
      }
    }
    const Attention attention{rows, heads_, kv_heads_, width, capacity, past, window_, scale_,
                              queries.data(), present_keys, present_values, attended};
    run(call, attention);
  }

 private:
  struct Angles {
    const float *cosines, *sines;
    int64_t pairs;

    // Neighbours turned by the angles of a slot.
    void rotate(const float* in, int64_t slot, float* out) const {
      const float *cosine = cosines + slot * pairs, *sine = sines + slot * pairs;
      for (int64_t i = 0; i < pairs; ++i) {
        const float x = in[2 * i], y = in[2 * i + 1];
        out[2 * i] = x * cosine[i] - y * sine[i];
        out[2 * i + 1] = x * sine[i] + y * cosine[i];
      }
    }
  };

  // Where past and present are not one buffer.
  void keep_past(const float* from, int64_t past, int64_t capacity, int64_t width, float* to) const {
    if (from == to) return;
    for (int64_t head = 0; head < kv_heads_; ++head) {
      const int64_t begin = head * capacity * width;
      std::memcpy(to + begin, from + begin, static_cast<size_t>(past * width) * sizeof(float));
    }
  }

  static void run(const Call& call, const Attention& attention) {
    const Kernels& table = kernels(current_level());
    const int64_t rows = attention.rows, seen = attention.past + rows - attention.first_slot(0);
    const int64_t products = rows * attention.heads * attention.width * seen;
    const int64_t wanted = std::clamp<int64_t>(products / kTaskProducts, 1, kMostTasks);
    const int64_t parts = std::clamp<int64_t>(wanted / attention.heads, 1, (rows + 3) / 4);  // of the rows
    const int64_t portion = (rows + 4 * parts - 1) / (4 * parts) * 4;
    const int64_t units = attention.heads * parts, tasks = std::min(units, wanted);
    call.parallel(static_cast<size_t>(tasks), [&](size_t task) {
      for (auto unit = static_cast<int64_t>(task); unit < units; unit += tasks) {
        const int64_t first = unit % parts * portion;
        table.attend(attention, unit / parts, first, std::min(rows, first + portion));
      }
    });
  }

  int64_t heads_, kv_heads_, window_;
  float scale_;
};

}  // namespace

const Operator& window_attention_operator() {
  using namespace ort;
  static const Operator op(
      "WindowAttention", 4, {kFloat, kFloat, kFloat, kInt32, kInt32, kFloat, kFloat}, 7, {kFloat, kFloat, kFloat},
      [](const Node& node) -> Kernel* { return new WindowAttention(node); });
  return op;
}

}  // namespace edgeblt
