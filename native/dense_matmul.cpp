// edgeblt::DenseMatMul: weights as MatMulNBits has them.
#include "matmul.h"

namespace edgeblt {
namespace {

class DenseMatMul final : public MatMul {
 public:
  explicit DenseMatMul(const Node& node) : MatMul(node) { bind_constants(node, 3, 2); }

 protected:
  void bind(const std::vector<Tensor>& weights) override {
    require(weights[0], "codes", ort::kUint8, {rows_, blocks_, block_size_ * bits_ / 8});
    if (weights[2]) require(weights[2], "zero_points", ort::kUint8, {rows_, (blocks_ * bits_ + 7) / 8});
    weights_ = {rows_, columns_, block_size_, blocks_, static_cast<int>(bits_),
                static_cast<const uint8_t*>(weights[0].data), static_cast<const uint8_t*>(weights[2].data),
                bind_scales(weights[1])};
  }

  void multiply(const Kernels& table, const Inputs& inputs, int64_t first, int64_t last, float* out) const override {
    table.dense(weights_, inputs, first, last, out);
  }

  bool splits_inputs() const override { return bits_ == 4; }

 private:
  DenseWeights weights_{};
};

}  // namespace

const Operator& dense_matmul_operator() {
  using namespace ort;
  static const Operator op(
      "DenseMatMul", 1, {kFloat, kUint8, kAny, kUint8}, 3, {kFloat},
      [](const Node& node) -> Kernel* { return new DenseMatMul(node); });
  return op;
}

}  // namespace edgeblt
