// edgeblt::DenseCrossAttention: what a decoder's layer does before its self-attention, in one call, where the weights
// are dense: norm, queries, attention to the latent of each byte, and twice what it read added to the result.
// export/operators/layers.py has the same in the operators it is made of.
#include "dense_product.h"
#include "latent_rows.h"

namespace edgeblt {
namespace {

class DenseCrossAttention final : public Kernel {
 public:
  explicit DenseCrossAttention(const Node& node)
      : latents_(node), width_(positive(node, "width")), epsilon_(node.float_attribute("epsilon")),
        query_norm_(norm_weight(node, 4, "query_norm", width_)),
        query_(node, "query_", width_, latents_.attended_width(), 5, 2),
        output_(node, "output_", latents_.attended_width(), width_, 6, 2) {
    if (positive(node, "attended") != latents_.attended_width()) {
      throw OperatorError("attended is " + std::to_string(positive(node, "attended")) + ", not the " +
                          std::to_string(latents_.attended_width()) + " elements of its heads; export the model again");
    }
  }

  void compute(const Call& call) override {
    const Tensor x = call.input(0);
    require(x, "x", ort::kFloat, {-1, width_});
    const int64_t rows = x.shape[0], attended_width = latents_.attended_width();
    const LatentInputs inputs{call.input(1), call.input(2), call.input(3)};
    latents_.check(inputs, rows);
    auto* y = call.output<float>(0, x.shape);
    if (!rows) return;
    const Kernels& table = kernels(current_level());
    const auto* in = static_cast<const float*>(x.data);
    float* normed = workspace<float, kLayer>(product_of({rows, width_ + 2 * attended_width}));
    float *queries = normed + rows * width_, *attended = queries + rows * attended_width;
    query_.run(call, table, query_.round(call, table, rows, [&](int64_t row) {
      float* place = normed + row * width_;
      table.normalize(in + row * width_, nullptr, query_norm_, width_, epsilon_, nullptr, place);
      return place;
    }), queries);
    latents_.run(call, inputs, rows, queries, attended);
    const auto at = [&](int64_t row) { return attended + row * attended_width; };
    output_.run(call, table, output_.round(call, table, rows, at), y);
    for (int64_t i = 0; i < rows * width_; ++i) y[i] += in[i] + in[i];
  }

 private:
  LatentRows latents_;
  int64_t width_;
  float epsilon_;
  const float* query_norm_;
  DenseProduct query_, output_;
};

}  // namespace

const Operator& dense_cross_attention_operator() {
  using namespace ort;
  static const Operator op(
      "DenseCrossAttention", 7,
      {kFloat, kFloat, kFloat, kInt64, kFloat, kUint8, kUint8, kAny, kAny, kUint8, kUint8}, 11, {kFloat},
      [](const Node& node) -> Kernel* { return new DenseCrossAttention(node); });
  return op;
}

}  // namespace edgeblt
