// edgeblt::DenseMatMul: dense weights, sixteen rows side by side; and edgeblt::DenseProjection, the same, whose portable
// body computes nothing where there are no rows.
#include "dense_product.h"

namespace edgeblt {
namespace {

class DenseMatMul final : public MatMul {
 public:
  explicit DenseMatMul(const Node& node) : MatMul(node), product_(form_) { bind_constants(node, 3); }

 protected:
  void bind(const std::vector<Tensor>& weights) override { product_.bind(weights[0], weights[1], weights[2]); }

  void multiply(const Kernels& table, const Inputs& inputs, int64_t first, int64_t last, float* out) const override {
    product_.multiply(table, inputs, first, last, out);
  }

  bool takes_tiles() const override { return true; }

  void prefetch() const override { product_.prefetch(); }

 private:
  DenseProduct product_;
};

}  // namespace

const Operator& dense_matmul_operator() {
  using namespace ort;
  static const Operator op(
      "DenseMatMul", 1, {kFloat, kUint8, kAny, kUint8}, 4, {kFloat},
      [](const Node& node) -> Kernel* { return new DenseMatMul(node); });
  return op;
}

const Operator& dense_projection_operator() {
  using namespace ort;
  static const Operator op(
      "DenseProjection", 11, {kFloat, kUint8, kAny, kUint8}, 4, {kFloat},
      [](const Node& node) -> Kernel* { return new DenseMatMul(node); });
  return op;
}

}  // namespace edgeblt
