// edgeblt::WindowAttention: causal attention within a window over a cache that is written in place, queries and keys
// rotated by the angles of their slots. export/operators/matmuls.py has the same by ONNX Runtime's GroupQueryAttention.
#include "cached_attention.h"

namespace edgeblt {
namespace {

class WindowAttention final : public Kernel {
 public:
  explicit WindowAttention(const Node& node) : attention_(node) {}

  void compute(const Call& call) override {
    const Tensor projected = call.input(0);
    const bool batch = projected.shape.size() == 3;  // of one, in bundles of earlier versions
    require(projected, "projected", ort::kFloat, batch ? Shape{1, -1, -1} : Shape{-1, -1});
    const CacheInputs cache{call.input(1), call.input(2), call.input(4), call.input(5), call.input(6), call.input(7),
                            call.input(8)};
    Shape shape = projected.shape;
    const int64_t rows = shape[batch], width = attention_.check(cache, rows);
    shape.back() = attention_.projected_width(width);
    require(projected, "projected", ort::kFloat, shape);
    shape.back() = attention_.attended_width(width);
    auto* attended = call.output<float>(0, shape);
    attention_.run(call, cache, rows, static_cast<const float*>(projected.data), attended);
  }

 private:
  CachedAttention attention_;
};

}  // namespace

std::vector<const Operator*> window_attention_operators() {
  using namespace ort;
  static const std::vector<Operator> ops = for_caches([](ElementType cache) {
    return Operator("WindowAttention", 4, {kFloat, cache, cache, kInt32, kInt32, kFloat, kFloat, kInt32, kInt32}, 7,
                    {kFloat, cache, cache}, [](const Node& node) -> Kernel* { return new WindowAttention(node); });
  });
  return addresses(ops);
}

}  // namespace edgeblt
