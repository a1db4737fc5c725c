// edgeblt::DensePooling: the vectors of completed patches from those of their bytes, in one call where the weights are
// dense: the maximum of a patch's bytes, projected, attends to them, and is added twice to the result.
// export/operators/pooling.py has the same in the operators it is made of.
#include <algorithm>
#include <limits>

#include "dense_product.h"
#include "patch_attention.h"

namespace edgeblt {
namespace {

class DensePooling final : public Kernel {
 public:
  explicit DensePooling(const Node& node)
      : heads_(node), width_(positive(node, "width")), pooled_(positive(node, "pooled")),
        attended_(positive(node, "attended")), projected_(positive(node, "projected")),
        epsilon_(node.float_attribute("epsilon")), query_norm_(norm_weight(node, 5, "query_norm", width_)),
        key_norm_(norm_weight(node, 6, "key_norm", width_)), projection_(node, "projection_", width_, pooled_, 7, 4),
        query_(node, "query_", width_, attended_, 8, 4), key_(node, "key_", width_, projected_, 9, 4),
        output_(node, "output_", attended_, width_, 10, 4) {
    if (pooled_ != product_of({heads_.vectors(), width_}) || attended_ != heads_.attended_width() ||
        projected_ != heads_.projected_width()) {
      throw OperatorError("pooled, attended and projected are " + describe({pooled_, attended_, projected_}) +
                          ", which are not the sizes of its heads and vectors; export the model again");
    }
  }

  void compute(const Call& call) override {
    const Tensor bytes = call.input(0), open = call.input(1), index = call.input(2), open_index = call.input(3);
    const Tensor patches = call.input(4);
    require(bytes, "byte_vectors", ort::kFloat, {-1, width_});
    require(open, "open_vectors", ort::kFloat, {-1, width_});
    require(index, "patch_index", ort::kInt64, {bytes.shape[0]});
    require(open_index, "open_index", ort::kInt64, {open.shape[0]});
    require(patches, "patches", ort::kInt64, {-1});
    if (!patches.shape[0]) throw OperatorError("patches is empty; it counts from 0 to the number of completed ones");
    auto* out = call.output<float>(0, {patches.shape[0] - 1, pooled_});
    if (patches.shape[0] == 1) return;
    const Vectors vectors{static_cast<const float*>(open.data), static_cast<const float*>(bytes.data), open.shape[0],
                          PatchRows({open_index, index}, patches.shape[0] - 1)};
    pool(call, vectors, out);
  }

 private:
  // Vectors of the open patch and of the chunk, and where those of completed patches are.
  struct Vectors {
    const float *open, *bytes;
    int64_t open_count;
    PatchRows rows;

    const float* at(int64_t place, int64_t width) const {
      const int64_t row = rows.row(place);
      return row < open_count ? open + row * width : bytes + (row - open_count) * width;
    }
  };

  void pool(const Call& call, const Vectors& vectors, float* out) const {
    const Kernels& table = kernels(current_level());
    const int64_t patches = vectors.rows.patches(), rows = vectors.rows.rows(), lines = patches * heads_.vectors();
    float* normed = workspace<float, kLayer>(sum_of(
        {product_of({std::max(lines, rows), width_}), product_of({2, lines, attended_}), product_of({rows, projected_})}));
    float *query = normed + std::max(lines, rows) * width_, *attended = query + lines * attended_;
    float *projected = attended + lines * attended_, *queries = out;
    projection_.run(call, table, projection_.round(call, table, patches, [&](int64_t patch) {
      return largest(vectors, patch, normed + patch * width_);
    }), queries);
    query_.run(call, table, query_.round(call, table, lines, [&](int64_t line) {
      return normalize(table, queries + line * width_, query_norm_, normed + line * width_);
    }), query);
    if (rows) {
      key_.run(call, table, key_.round(call, table, rows, [&](int64_t place) {
        return normalize(table, vectors.at(place, width_), key_norm_, normed + place * width_);
      }), projected);
    }
    heads_.run(call, vectors.rows, query, projected, attended);
    const auto at = [&](int64_t line) { return attended + line * attended_; };
    output_.run(call, table, output_.round(call, table, lines, at), normed);
    for (int64_t i = 0; i < lines * width_; ++i) out[i] = normed[i] + (queries[i] + queries[i]);
  }

  const float* normalize(const Kernels& table, const float* values, const float* weight, float* out) const {
    table.normalize(values, nullptr, weight, width_, epsilon_, nullptr, out);
    return out;
  }

  // The maximum of the patch's bytes in each column; of a patch without bytes the lowest value, as in the body.
  const float* largest(const Vectors& vectors, int64_t patch, float* out) const {
    std::fill(out, out + width_, std::numeric_limits<float>::lowest());
    for (int64_t place = vectors.rows.begin(patch); place < vectors.rows.end(patch); ++place) {
      const float* vector = vectors.at(place, width_);
      for (int64_t i = 0; i < width_; ++i) out[i] = vector[i] > out[i] || vector[i] != vector[i] ? vector[i] : out[i];
    }
    return out;
  }

  PatchHeads heads_;
  int64_t width_, pooled_, attended_, projected_;
  float epsilon_;
  const float *query_norm_, *key_norm_;
  DenseProduct projection_, query_, key_, output_;
};

}  // namespace

const Operator& dense_pooling_operator() {
  using namespace ort;
  static const Operator op(
      "DensePooling", 10,
      {kFloat, kFloat, kInt64, kInt64, kInt64, kFloat, kFloat,  // vectors, indices, patches, norms
       kUint8, kUint8, kUint8, kUint8, kAny, kAny, kAny, kAny, kUint8, kUint8, kUint8, kUint8},
      19, {kFloat}, [](const Node& node) -> Kernel* { return new DensePooling(node); });
  return op;
}

}  // namespace edgeblt
