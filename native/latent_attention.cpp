// edgeblt::LatentAttention: each byte attends to the few vectors of one latent. export/operators/layers.py has the same in
// standard operators.
#include <algorithm>

#include "latent_rows.h"
#include "tasks.h"

namespace edgeblt {

LatentRows::LatentRows(const Node& node)
    : attention_{node.attribute("num_heads", 1, kMostHeads), node.attribute("kv_num_heads", 1, kMostHeads),
                 node.attribute("head_dim", 1, kMostHeads), node.attribute("vectors", 1, kMostHeads),
                 node.float_attribute("scale")},
      offset_(node.attribute("offset", 0, kMostOffset)),
      end_(sum_of({offset_, product_of({2, attention_.kv_heads, attention_.width, attention_.vectors})})) {
  if (attention_.heads % attention_.kv_heads || attention_.width % 8 || attended_width() > kMostSize) {
    throw OperatorError(std::to_string(attention_.heads) + " heads of " + std::to_string(attention_.width) +
                        " elements do not share " + std::to_string(attention_.kv_heads) +
                        " of keys; export the model again");
  }
}

void LatentRows::check(const LatentInputs& inputs, int64_t bytes) const {
  require(inputs.carried, "carried_row", ort::kFloat, {-1, -1});
  require(inputs.index, "latent_index", ort::kInt64, {bytes});
  if (inputs.carried.shape[1] < end_) {
    throw OperatorError("carried_row is " + describe(inputs.carried.shape) + ", the layer ends at " +
                        std::to_string(end_) + "; export the model again");
  }
  const auto* index = static_cast<const int64_t*>(inputs.index.data);
  for (int64_t byte = 0; byte < bytes; ++byte) {
    if (index[byte] < 0 || index[byte] >= sum_of({inputs.carried.shape[0], inputs.count})) {
      throw OperatorError("latent_index is " + std::to_string(index[byte]) + " for " +
                          std::to_string(inputs.carried.shape[0]) + " carried and " +
                          std::to_string(inputs.count) + " new rows; it must be below their number");
    }
  }
}

void LatentRows::run(
    const Call& call, const LatentInputs& inputs, int64_t bytes, const float* queries, float* attended) const {
  if (!bytes) return;
  const Kernels& table = kernels(current_level());
  const auto* carried = static_cast<const float*>(inputs.carried.data) + offset_;
  const auto* index = static_cast<const int64_t*>(inputs.index.data);
  const int64_t width = attended_width(), row_width = inputs.carried.shape[1];
  const double products = static_cast<double>(bytes * width) * static_cast<double>(attention_.vectors);
  const Portions portions(bytes, 1, wanted_tasks(products));
  call.parallel(static_cast<size_t>(portions.count), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * portions.size;
    const int64_t end = std::min(bytes, begin + portions.size);
    for (int64_t byte = begin, next; byte < end; byte = next) {
      for (next = byte + 1; next < end && index[next] == index[byte]; ++next) {}
      const int64_t before = inputs.carried.shape[0];
      const float* row = index[byte] < before ? carried + index[byte] * row_width
                                              : inputs.rows + (index[byte] - before) * inputs.stride;
      table.attend_latent(attention_, queries + byte * width, row, next - byte, attended + byte * width);
    }
  });
}

namespace {

class LatentAttentionKernel final : public Kernel {
 public:
  explicit LatentAttentionKernel(const Node& node) : rows_(node) {}

  void compute(const Call& call) override {
    const Tensor query = call.input(0);
    require(query, "query", ort::kFloat, {-1, rows_.attended_width()});
    const Tensor carried = call.input(1), rows = call.input(2);
    require(carried, "carried_row", ort::kFloat, {-1, -1});
    require(rows, "new_rows", ort::kFloat, {-1, carried.shape[1]});
    const LatentInputs inputs{carried, call.input(3), rows.shape[0],
                              static_cast<const float*>(rows.data) + rows_.offset(), carried.shape[1]};
    rows_.check(inputs, query.shape[0]);
    auto* attended = call.output<float>(0, query.shape);
    rows_.run(call, inputs, query.shape[0], static_cast<const float*>(query.data), attended);
  }

 private:
  LatentRows rows_;
};

}  // namespace

const Operator& latent_attention_operator() {
  using namespace ort;
  static const Operator op(
      "LatentAttention", 6, {kFloat, kFloat, kFloat, kInt64}, 4, {kFloat},
      [](const Node& node) -> Kernel* { return new LatentAttentionKernel(node); });
  return op;
}

}  // namespace edgeblt
