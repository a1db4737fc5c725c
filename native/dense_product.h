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
      : form_(node, columns, rows, prefix), zero_points_(codes + 2 * count) {
    const Tensor scales = initializer(node, codes + count, prefix + "scales");
    bind(initializer(node, codes, prefix + "codes"), scales, node.constant(zero_points_), prefix);
  }

  // Zero points that are no initializers look absent when a session opens; raises OperatorError.
  void check(const Call& call) const {
    if (!weights_.zero_points && call.has(zero_points_)) {
      throw OperatorError("input " + std::to_string(zero_points_) + " is no initializer; export the model again");
    }
  }

  // Raises OperatorError, naming the input after `prefix`, for weights that are not of this form.
  void bind(const Tensor& codes, const Tensor& scales, const Tensor& zero_points, const std::string& prefix = "") {
    const auto named = [&](const char* name) { return prefix + name; };
    const int64_t groups = (form_.rows + kGroup - 1) / kGroup, bytes = kGroup * form_.bits / 8;
    if (codes.shape.size() == 3) {
      require(codes, named("codes").c_str(), ort::kUint8, {groups, form_.blocks, form_.block_size * bytes});
    } else {
      require(codes, named("codes").c_str(), ort::kUint8, {groups, form_.blocks, form_.block_size * form_.bits / 32, kGroup, 4});
    }
    if (zero_points) require(zero_points, named("zero_points").c_str(), ort::kUint8, {groups, form_.blocks, bytes});
    weights_ = {form_.rows, form_.columns, form_.block_size, form_.blocks, static_cast<int>(form_.bits),
                static_cast<const uint8_t*>(codes.data), static_cast<const uint8_t*>(zero_points.data),
                form_.scales(scales, kGroup, named("scales").c_str())};
  }

  // Whether inputs rounded for the one product serve the other.
  bool rounds_as(const DenseProduct& other) const {
    return form_.columns == other.form_.columns && form_.block_size == other.form_.block_size;
  }

  template <typename Values>
  Inputs round(const Call& call, const Kernels& table, int64_t rows, const Values& values) const {
    return round_rows(call, table, form_, rows, values);
  }

  // Rows [first, last) of the weights times all inputs; first is a multiple of 16.
  void multiply(const Kernels& table, const Inputs& inputs, int64_t first, int64_t last, float* out) const {
    table.dense(weights_, inputs, first, last, out);
  }

  // All of them, on the session's threads: out [rows of inputs, rows of weights].
  void run(const Call& call, const Kernels& table, const Inputs& inputs, float* out) const {
    multiply_rows(call, form_, inputs.rows, [&](int64_t first, int64_t last) {
      multiply(table, inputs, first, last, out);
    });
  }

 private:
  Form form_;
  DenseWeights weights_{};
  size_t zero_points_ = 0;  // which input they are, of a layer's product
};

}  // namespace edgeblt

#endif
