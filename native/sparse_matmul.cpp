// edgeblt::SparseMatMul: of every four columns two, or of every eight four, hold weights; the others are left out.
#include "matmul.h"

namespace edgeblt {
namespace {

class SparseMatMul final : public MatMul {
 public:
  explicit SparseMatMul(const Node& node) : MatMul(node), group_(node.attribute("group", 1, kMostSize)) {
    if (group_ != 4 && group_ != 8) throw OperatorError("group is " + std::to_string(group_) + "; use 4 or 8");
    bind_constants(node, 2);
  }

 protected:
  void bind(const std::vector<Tensor>& weights) override {
    const int group = static_cast<int>(group_), bits = static_cast<int>(form_.bits);
    const int64_t pairs = (form_.rows + 1) / 2, tiles = (form_.columns + kTile - 1) / kTile;
    require(weights[0], "tiles", ort::kUint8, {pairs, tiles, tile_bytes(group, bits)});
    weights_ = {form_.rows, form_.columns, form_.block_size, form_.blocks, bits, group,
                static_cast<const uint8_t*>(weights[0].data), form_.scales(weights[1], 2)};
  }

  void multiply(const Kernels& table, const Inputs& inputs, int64_t first, int64_t last, float* out) const override {
    table.sparse(weights_, inputs, first, last, out);
  }

 private:
  int64_t group_;
  SparseWeights weights_{};
};

}  // namespace

const Operator& sparse_matmul_operator() {
  using namespace ort;
  static const Operator op(
      "SparseMatMul", 2, {kFloat, kUint8, kAny}, 3, {kFloat},
      [](const Node& node) -> Kernel* { return new SparseMatMul(node); });
  return op;
}

}  // namespace edgeblt
