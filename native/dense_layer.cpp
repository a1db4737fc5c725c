// edgeblt::DenseLayer: a whole transformer layer whose weights are dense, in one call: norm, self-attention, norm,
// gated MLP, each of the two added to what it read. export/operators/layers.py has the same in the operators it is made of.
#include "cached_attention.h"
#include "dense_product.h"

namespace edgeblt {
namespace {

class DenseLayer final : public Kernel {
 public:
  explicit DenseLayer(const Node& node)
      : attention_(node), width_(positive(node, "width")), attended_(positive(node, "attended")),
        projected_(positive(node, "projected")), intermediate_(positive(node, "intermediate")),
        epsilon_(node.float_attribute("epsilon")), attention_norm_(norm_weight(node, 6, "attention_norm", width_)),
        mlp_norm_(norm_weight(node, 7, "mlp_norm", width_)), query_(product(node, "query_", width_, projected_, 0)),
        output_(product(node, "output_", attended_, width_, 1)),
        gate_(product(node, "gate_", width_, intermediate_, 2)), up_(product(node, "up_", width_, intermediate_, 3)),
        down_(product(node, "down_", intermediate_, width_, 4)) {}

  void compute(const Call& call) override {
    const Tensor x = call.input(0);
    require(x, "x", ort::kFloat, {-1, width_});
    const int64_t rows = x.shape[0];
    const CacheInputs cache{call.input(1), call.input(2), call.input(3), call.input(4), call.input(5), call.input(23),
                            call.input(24)};
    const int64_t head_width = attention_.check(cache, rows);
    if (attention_.attended_width(head_width) != attended_ || attention_.projected_width(head_width) != projected_) {
      throw OperatorError("past_key is " + describe(cache.keys.shape) + ", which are not the heads of " +
                          std::to_string(attended_) + " elements; export the model again");
    }
    auto* y = call.output<float>(0, x.shape);
    const int64_t of_a_row = 2 * width_ + std::max(projected_ + attended_, 2 * intermediate_);
    float* normed = workspace<float, kLayer>(product_of({rows, of_a_row}));
    const Values values{normed, normed + rows * width_, normed + rows * 2 * width_};
    attend(call, cache, static_cast<const float*>(x.data), rows, values, y);
    if (rows) add_mlp(call, static_cast<const float*>(x.data), rows, values, y);
  }

 private:
  // What is computed on the way: [rows, width], the same, and whatever else.
  struct Values {
    float *normed, *total, *rest;
  };

  static DenseProduct product(const Node& node, const char* prefix, int64_t columns, int64_t rows, size_t number) {
    return {node, prefix, columns, rows, 8 + number, 5};
  }

  // Gives attention's results, without what it read, in `y`.
  void attend(
      const Call& call, const CacheInputs& cache, const float* x, int64_t rows, const Values& values, float* y) const {
    const Kernels& table = kernels(current_level());
    float *projected = values.rest, *attended = projected + rows * projected_;
    if (rows) {
      query_.run(call, table, query_.round(call, table, rows, [&](int64_t row) {
        float* normed = values.normed + row * width_;
        table.normalize(x + row * width_, nullptr, attention_norm_, width_, epsilon_, nullptr, normed);
        return normed;
      }), projected);
    }
    attention_.run(call, cache, rows, projected, attended);
    if (!rows) return;
    const auto at = [&](int64_t row) { return attended + row * attended_; };
    output_.run(call, table, output_.round(call, table, rows, at), y);
  }

  // Adds `x` to `y`, and to that the MLP's results.
  void add_mlp(const Call& call, const float* x, int64_t rows, const Values& values, float* y) const {
    const Kernels& table = kernels(current_level());
    float *gate = values.rest, *up = gate + rows * intermediate_;
    const Inputs inputs = gate_.round(call, table, rows, [&](int64_t row) {
      const int64_t begin = row * width_;
      table.normalize(y + begin, x + begin, mlp_norm_, width_, epsilon_, values.total + begin, values.normed + begin);
      return values.normed + begin;
    });
    if (up_.rounds_as(gate_)) {
      gate_.run_beside(call, table, inputs, gate, up_, up);
    } else {
      gate_.run(call, table, inputs, gate);
      up_.run(call, table, up_.round(call, table, rows, [&](int64_t row) { return values.normed + row * width_; }), up);
    }
    down_.run(call, table, down_.round(call, table, rows, [&](int64_t row) {
      const int64_t begin = row * intermediate_;
      table.gate(gate + begin, up + begin, intermediate_, gate + begin);
      return gate + begin;
    }), y);
    for (int64_t i = 0; i < rows * width_; ++i) y[i] += values.total[i];
  }

  CachedAttention attention_;
  int64_t width_, attended_, projected_, intermediate_;
  float epsilon_;
  const float *attention_norm_, *mlp_norm_;
  DenseProduct query_, output_, gate_, up_, down_;
};

}  // namespace

std::vector<const Operator*> dense_layer_operators() {
  using namespace ort;
  static const std::vector<Operator> ops = for_caches([](ElementType cache) {
    return Operator(
        "DenseLayer", 5,
        {kFloat, cache, cache, kInt32, kFloat, kFloat, kFloat, kFloat,  // x, cache, norms
         kUint8, kUint8, kUint8, kUint8, kUint8, kAny, kAny, kAny, kAny, kAny, kUint8, kUint8, kUint8, kUint8, kUint8,
         kInt32, kInt32},  // places, pages
        23, {kFloat, cache, cache}, [](const Node& node) -> Kernel* { return new DenseLayer(node); });
  });
  return addresses(ops);
}

}  // namespace edgeblt
