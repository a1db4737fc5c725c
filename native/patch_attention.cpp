// edgeblt::PatchAttention: each vector of a patch attends to the patch's own bytes. export/operators/pooling.py has the
// same in standard operators.
#include "patch_attention.h"

#include <cstring>

#include "tasks.h"
#include "workspace.h"

namespace edgeblt {

PatchHeads::PatchHeads(const Node& node)
    : attention_{node.attribute("num_heads", 1, kMostHeads), node.attribute("kv_num_heads", 1, kMostHeads),
                 node.attribute("head_dim", 1, kMostHeads), 0, node.float_attribute("scale")},
      vectors_(node.attribute("vectors", 1, kMostHeads)) {
  if (attention_.heads % attention_.kv_heads || attention_.width % 8 || attended_width() > kMostSize) {
    throw OperatorError(std::to_string(attention_.heads) + " heads of " + std::to_string(attention_.width) +
                        " elements do not share " + std::to_string(attention_.kv_heads) +
                        " of keys; export the model again");
  }
}

void PatchHeads::run(
    const Call& call, const PatchRows& rows, const float* queries, const float* projected, float* attended) const {
  const Kernels& table = kernels(current_level());
  const int64_t size = vectors_ * attended_width();
  const Portions portions(rows.patches(), 1, wanted_tasks(static_cast<double>(rows.rows()) * static_cast<double>(size)));
  call.parallel(static_cast<size_t>(portions.count), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * portions.size;
    for (int64_t patch = first; patch < std::min(rows.patches(), first + portions.size); ++patch) {
      LatentAttention attention = attention_;
      attention.vectors = rows.end(patch) - rows.begin(patch);
      float* out = attended + patch * size;
      if (attention.vectors) {
        const float* own = projected + rows.begin(patch) * projected_width();
        table.attend_bytes(attention, queries + patch * size, own, vectors_, out);
      } else {
        std::memset(out, 0, static_cast<size_t>(size) * sizeof *out);
      }
    }
  });
}

namespace {

class PatchAttentionKernel final : public Kernel {
 public:
  explicit PatchAttentionKernel(const Node& node) : heads_(node) {}

  void compute(const Call& call) override {
    const Tensor query = call.input(0), projected = call.input(1), index = call.input(2), patches = call.input(3);
    const int64_t width = heads_.projected_width();
    require(patches, "patches", ort::kInt64, {-1});
    require(query, "query", ort::kFloat, {product_of({patches.shape[0], heads_.vectors()}), heads_.attended_width()});
    require(projected, "projected", ort::kFloat, {-1, width});
    require(index, "patch_index", ort::kInt64, {projected.shape[0]});
    auto* attended = call.output<float>(0, query.shape);
    if (!patches.shape[0]) return;
    const PatchRows rows({index}, patches.shape[0]);
    float* sorted = workspace<float, kLayer>(product_of({rows.rows(), width}));
    for (int64_t place = 0; place < rows.rows(); ++place) {
      std::memcpy(sorted + place * width, static_cast<const float*>(projected.data) + rows.row(place) * width,
                  static_cast<size_t>(width) * sizeof *sorted);
    }
    heads_.run(call, rows, static_cast<const float*>(query.data), sorted, attended);
  }

 private:
  PatchHeads heads_;
};

}  // namespace

const Operator& patch_attention_operator() {
  using namespace ort;
  static const Operator op(
      "PatchAttention", 9, {kFloat, kFloat, kInt64, kInt64}, 4, {kFloat},
      [](const Node& node) -> Kernel* { return new PatchAttentionKernel(node); });
  return op;
}

}  // namespace edgeblt
