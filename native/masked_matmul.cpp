// edgeblt::MaskedMatMul: any columns hold weights; a bit for each says whether.
#include <cstring>

#include "matmul.h"

namespace edgeblt {
namespace {

class MaskedMatMul final : public MatMul {
 public:
  explicit MaskedMatMul(const Node& node) : MatMul(node) { bind_constants(node, 4); }

 protected:
  void bind(const std::vector<Tensor>& weights) override {
    require(weights[0], "mask", ort::kUint8, {form_.rows, mask_bytes(form_.columns)});
    require(weights[1], "values", ort::kUint8, {-1});
    require(weights[2], "offsets", ort::kInt32, {form_.rows + 1});
    weights_ = {form_.rows, form_.columns, form_.block_size, form_.blocks, static_cast<int>(form_.bits),
                static_cast<const uint8_t*>(weights[0].data), static_cast<const uint8_t*>(weights[1].data),
                static_cast<const int32_t*>(weights[2].data), form_.scales(weights[3])};
    check_rows(weights[1].count());
  }

  void multiply(const Kernels& table, const Inputs& inputs, int64_t first, int64_t last, float* out) const override {
    table.masked(weights_, inputs, first, last, out);
  }

 private:
  // Every row must have exactly the values its mask says, or the kernels would read beyond them.
  void check_rows(int64_t bytes) const {
    int64_t end = weights_.offsets[0];
    bool fits = end == 0;
    for (int64_t row = 0; row < form_.rows && fits; ++row) {
      const uint8_t* mask = weights_.mask + row * mask_bytes(form_.columns);
      int64_t count = 0;
      for (int64_t word = 0; word < mask_bytes(form_.columns); word += 4) {
        uint32_t bits;
        std::memcpy(&bits, mask + word, sizeof bits);
        count += __builtin_popcount(bits);
        const int64_t inside = form_.columns - word * 8;
        if (inside < 32 && bits >> inside) fits = false;
      }
      end += (count * form_.bits + 7) / 8;
      fits = fits && weights_.offsets[row + 1] == end;
    }
    if (!fits || bytes < end + kMaskedPadding) {
      throw OperatorError("mask, values and offsets do not belong together; export the model again");
    }
  }

  MaskedWeights weights_{};
};

}  // namespace

const Operator& masked_matmul_operator() {
  using namespace ort;
  static const Operator op(
      "MaskedMatMul", 3, {kFloat, kUint8, kUint8, kInt32, kAny}, 5, {kFloat},
      [](const Node& node) -> Kernel* { return new MaskedMatMul(node); });
  return op;
}

}  // namespace edgeblt
