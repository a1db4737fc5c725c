// Dense weights and their products with rounded inputs: what DenseMatMul is, and whole layers are made of.
#ifndef EDGEBLT_DENSE_PRODUCT_H
#define EDGEBLT_DENSE_PRODUCT_H

#include "matmul.h"

namespace edgeblt {

// An initializer; raises OperatorError for any other input.
inline Tensor initializer(const Node& node, size_t index, const std::string& name) {
  const Tensor tensor = node.constant(index);
  if (!tensor) throw OperatorError(name + " is no initializer; export the model again");
  return tensor;
}

// A norm's weight, which is one.
inline const float* norm_weight(const Node& node, size_t index, const char* name, int64_t width) {
  const Tensor weight = initializer(node, index, name);
  require(weight, name, ort::kFloat, {width});
  return static_cast<const float*>(weight.data);
}

class DenseProduct {
 public:
  explicit DenseProduct(const Form& form) : form_(form) {}

  // One of a layer's `count` products, whose weights are initializers: the codes of all are the inputs from `codes` on,
  // then come their scales, and then their zero points.
  DenseProduct(const Node& node, const std::string& prefix, int64_t columns, int64_t rows, size_t codes, size_t count)
      : form_(node, columns, rows, prefix) {
    const auto part = [&](const char* name, size_t place) {
      return initializer(node, codes + place * count, prefix + name);
    };
    bind(part("codes", 0), part("scales", 1), part("zero_points", 2), prefix);
  }

  // Raises OperatorError, naming the input after `prefix`, for weights that are not of this form.
  void bind(const Tensor& codes, const Tensor& scales, const Tensor& zero_points, const std::string& prefix = "") {
    const auto named = [&](const char* name) { return prefix + name; };
    const int64_t groups = (form_.rows + kGroup - 1) / kGroup, bytes = kGroup * form_.bits / 8;
    require(codes, named("codes").c_str(), ort::kUint8, {groups, form_.blocks, form_.block_size * bytes});
    const auto* points = static_cast<const uint8_t*>(zero_points.data);
    if (zero_points.shape.size() == 1) {  // one byte stands for all: the middle of the codes
      require(zero_points, named("zero_points").c_str(), ort::kUint8, {1});
      if (*points != (form_.bits == 8 ? 0x80 : 0x88)) {
        throw OperatorError(named("zero_points") + " of one byte is not the middle of the codes; export the model again");
      }
      points = nullptr;
    } else {
      require(zero_points, named("zero_points").c_str(), ort::kUint8, {groups, form_.blocks, bytes});
    }
    weights_ = {form_.rows, form_.columns, form_.block_size, form_.blocks, static_cast<int>(form_.bits),
                static_cast<const uint8_t*>(codes.data), points,
                form_.scales(scales, kGroup, named("scales").c_str())};
  }

  // Whether inputs rounded for the one product serve the other.
  bool rounds_as(const DenseProduct& other) const {
    return form_.columns == other.form_.columns && form_.block_size == other.form_.block_size;
  }

  template <typename Values>
  Inputs round(const Call& call, const Kernels& table, int64_t rows, const Values& values) const {
    prefetch();
    return round_rows(call, table, form_, rows, true, values);
  }

  // Asks for the first of the weights, which come from memory while inputs are rounded; kernels ask for all that follow.
  void prefetch() const {
    constexpr int64_t kFirst = 4096;
    const int64_t groups = (form_.rows + kGroup - 1) / kGroup, bytes = groups * form_.blocks * weights_.block_bytes();
    for (int64_t byte = 0; byte < std::min(kFirst, bytes); byte += 64) __builtin_prefetch(weights_.codes + byte, 0, 3);
    __builtin_prefetch(weights_.scales.values, 0, 3);
  }

  // Rows [first, last) of the weights times all inputs; first is a multiple of 16.
  void multiply(const Kernels& table, const Inputs& inputs, int64_t first, int64_t last, float* out) const {
    table.dense(weights_, inputs, first, last, out);
  }

  // All of them, on the session's threads: out [rows of inputs, rows of weights].
  void run(const Call& call, const Kernels& table, const Inputs& inputs, float* out) const {
    multiply_rows(call, table, form_, inputs, out, [&](const Inputs& some, int64_t first, int64_t last, float* place) {
      multiply(table, some, first, last, place);
    });
  }

  // The same of this and another product of the same inputs, whose tasks follow each other without a wait in between.
  void run_beside(
      const Call& call, const Kernels& table, const Inputs& inputs, float* out, const DenseProduct& other,
      float* other_out) const {
    const ProductTasks tasks(table, form_, inputs), others(table, other.form_, inputs);
    const auto run_task = [&](int64_t task) {
      const DenseProduct& product = task < tasks.count() ? *this : other;
      const auto multiply = [&](const Inputs& some, int64_t first, int64_t last, float* place) {
        product.multiply(table, some, first, last, place);
      };
      if (task < tasks.count()) return tasks.run(task, out, multiply);
      others.run(task - tasks.count(), other_out, multiply);
    };
    const int64_t count = tasks.count() + others.count();
    if (count > 2) {
      return call.parallel(static_cast<size_t>(count), [&](size_t task) { run_task(static_cast<int64_t>(task)); });
    }
    run_task(0);  // both are small
    run_task(1);
  }

 private:
  Form form_;
  DenseWeights weights_{};
};

}  // namespace edgeblt

#endif
