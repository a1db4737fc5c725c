// edgeblt::DenseCrossAttention: what a decoder's layer does before its self-attention, in one call, where the weights
// are dense: keys and values of new latents, norm, queries, attention to the latent of each byte, and twice what it
// read added to the result. export/operators/layers.py has the same in the operators it is made of.
#include <algorithm>

#include "dense_product.h"
#include "latent_rows.h"

namespace edgeblt {
namespace {

class DenseCrossAttention final : public Kernel {
 public:
  explicit DenseCrossAttention(const Node& node)
      : latents_(node), width_(positive(node, "width")), projected_(positive(node, "projected")),
        epsilon_(node.float_attribute("epsilon")), query_norm_(norm_weight(node, 4, "query_norm", width_)),
        key_norm_(norm_weight(node, 5, "key_norm", width_)),
        query_(node, "query_", width_, latents_.attended_width(), 6, 3), key_(node, "key_", width_, projected_, 7, 3),
        output_(node, "output_", latents_.attended_width(), width_, 8, 3) {
    const int64_t attended = positive(node, "attended"), vectors = latents_.attention().vectors;
    if (attended != latents_.attended_width() || projected_ != latents_.row_width() / vectors) {
      throw OperatorError("attended and projected are " + describe({attended, projected_}) + ", not the " +
                          describe({latents_.attended_width(), latents_.row_width() / vectors}) +
                          " elements of its heads; export the model again");
    }
  }

  void compute(const Call& call) override {
    const Tensor x = call.input(0), carried = call.input(1), latents = call.input(2);
    require(x, "x", ort::kFloat, {-1, width_});
    require(latents, "latents", ort::kFloat, {-1, product_of({latents_.attention().vectors, width_})});
    const int64_t rows = x.shape[0], new_rows = latents.shape[0];
    LatentInputs inputs{carried, call.input(3), new_rows, nullptr, latents_.row_width()};
    latents_.check(inputs, rows);
    auto* y = call.output<float>(0, x.shape);
    auto* made = call.output<float>(1, {new_rows, latents_.row_width()});
    if (new_rows) project(call, static_cast<const float*>(latents.data), new_rows, made);
    inputs.rows = made;
    if (rows) attend(call, inputs, static_cast<const float*>(x.data), rows, y);
  }

 private:
  // Keys and values of the latents' vectors [new_rows * vectors, width] as the layer's part of their rows.
  void project(const Call& call, const float* vectors, int64_t new_rows, float* made) const {
    const Kernels& table = kernels(current_level());
    const LatentAttention& heads = latents_.attention();
    const int64_t lines = product_of({new_rows, heads.vectors});
    float* normed = workspace<float, kLayer>(product_of({lines, sum_of({width_, projected_})}));
    float* projected = normed + lines * width_;
    key_.run(call, table, key_.round(call, table, lines, [&](int64_t line) {
      return normalize(table, vectors + line * width_, key_norm_, normed + line * width_);
    }), projected);
    const int64_t keys = projected_ / 2;  // of a vector: the keys of all heads, then their values
    for (int64_t line = 0; line < lines; ++line, projected += projected_) {
      const int64_t vector = line % heads.vectors;
      float *row = made + line / heads.vectors * latents_.row_width(), *values = row + keys * heads.vectors;
      for (int64_t i = 0; i < keys; ++i) row[i * heads.vectors + vector] = projected[i];
      for (int64_t head = 0; head < heads.kv_heads; ++head) {
        const float* own = projected + keys + head * heads.width;
        std::copy(own, own + heads.width, values + (head * heads.vectors + vector) * heads.width);
      }
    }
  }

  void attend(const Call& call, const LatentInputs& inputs, const float* in, int64_t rows, float* y) const {
    const Kernels& table = kernels(current_level());
    const int64_t attended_width = latents_.attended_width();
    float* normed = workspace<float, kLayer>(product_of({rows, width_ + 2 * attended_width}));
    float *queries = normed + rows * width_, *attended = queries + rows * attended_width;
    query_.run(call, table, query_.round(call, table, rows, [&](int64_t row) {
      return normalize(table, in + row * width_, query_norm_, normed + row * width_);
    }), queries);
    latents_.run(call, inputs, rows, queries, attended);
    const auto at = [&](int64_t row) { return attended + row * attended_width; };
    output_.run(call, table, output_.round(call, table, rows, at), y);
    for (int64_t i = 0; i < rows * width_; ++i) y[i] += in[i] + in[i];
  }

  const float* normalize(const Kernels& table, const float* values, const float* weight, float* out) const {
    table.normalize(values, nullptr, weight, width_, epsilon_, nullptr, out);
    return out;
  }

  LatentRows latents_;
  int64_t width_, projected_;
  float epsilon_;
  const float *query_norm_, *key_norm_;
  DenseProduct query_, key_, output_;
};

}  // namespace

const Operator& dense_cross_attention_operator() {
  using namespace ort;
  static const Operator op(
      "DenseCrossAttention", 7,
      {kFloat, kFloat, kFloat, kInt64, kFloat, kFloat,  // bytes, carried row, latents, index, norms
       kUint8, kUint8, kUint8, kAny, kAny, kAny, kUint8, kUint8, kUint8},
      15, {kFloat, kFloat}, [](const Node& node) -> Kernel* { return new DenseCrossAttention(node); });
  return op;
}

}  // namespace edgeblt
