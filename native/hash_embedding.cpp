// edgeblt::HashEmbedding: the embedding of each byte plus a row of every hash table, chosen by the n-grams that end
// there. export/operators/hash_embedding.py has the same in standard operators.
#include <cstring>

#include "dense_product.h"

namespace edgeblt {
namespace {

// A table as three inputs, which are initializers: values, and for codes scales and perhaps zero points.
class StoredTable {
 public:
  StoredTable(const Node& node, const std::string& prefix, int64_t width, size_t first) {
    const Tensor values = initializer(node, first, prefix + "values");
    const std::string named = prefix + "values";
    table_.width = width;
    table_.bits = static_cast<int>(positive(node, (prefix + "bits").c_str()));
    table_.block_size = positive(node, (prefix + "block_size").c_str());
    table_.blocks = (width + table_.block_size - 1) / table_.block_size;
    table_.values = values.data;
    table_.rows = values.shape.empty() ? 0 : values.shape[0];
    if (table_.bits == 16 || table_.bits == 32) {
      require(values, named.c_str(), table_.bits == 16 ? ort::kFloat16 : ort::kFloat, {table_.rows, width});
    } else if (table_.bits == 4 || table_.bits == 8) {
      require(values, named.c_str(), ort::kUint8, {table_.rows, packed(width)});
      bind_scales(initializer(node, first + 1, prefix + "scales"), prefix + "scales");
      const Tensor points = node.constant(first + 2);
      if (points) require(points, (prefix + "zero_points").c_str(), ort::kUint8, {table_.rows, packed(table_.blocks)});
      table_.zero_points = static_cast<const uint8_t*>(points.data);
    } else {
      throw OperatorError(prefix + "bits is " + std::to_string(table_.bits) + "; use 4, 8, 16 or 32");
    }
  }

  int64_t rows() const { return table_.rows; }

  // Adds row `row`, which the table has, to `out`.
  void add(const Kernels& table, int64_t row, float* out) const { table.add_table_row(table_, row, out); }

 private:
  // Bytes of so many numbers.
  int64_t packed(int64_t count) const { return (product_of({count, table_.bits}) + 7) / 8; }

  void bind_scales(const Tensor& scales, const std::string& name) {
    const bool half = scales.type == ort::kFloat16;
    require(scales, name.c_str(), half ? ort::kFloat16 : ort::kFloat, {table_.rows, table_.blocks});
    table_.scales = {scales.data, half, table_.blocks, 1};
  }

  Table table_{};
};

class HashEmbedding final : public Kernel {
 public:
  explicit HashEmbedding(const Node& node)
      : width_(positive(node, "width")), vocab_size_(positive(node, "vocab_size")),
        coefficients_(initializer(node, 1, "coefficients")), bytes_(node, "byte_", width_, 2),
        hashes_(node, "hash_", width_, 5) {
    require(coefficients_, "coefficients", ort::kInt64, {-1, -1});
    if (product_of({tables(), vocab_size_}) > hashes_.rows()) {
      throw OperatorError("hash_values has " + std::to_string(hashes_.rows()) + " rows, not " +
                          std::to_string(vocab_size_) + " for each of " + std::to_string(tables()) +
                          " tables; export the model again");
    }
  }

  void compute(const Call& call) override {
    const Tensor windows = call.input(0);
    require(windows, "windows", ort::kInt64, {-1, context()});
    const int64_t rows = windows.shape[0];
    auto* out = call.output<float>(0, {rows, width_});
    if (!rows) return;
    const auto* ids = static_cast<const int64_t*>(windows.data);
    const Kernels& table = kernels(current_level());
    const Portions portions(rows, 1, wanted_tasks(static_cast<double>(rows * width_) * static_cast<double>(tables())));
    call.parallel(static_cast<size_t>(portions.count), [&](size_t task) {
      const int64_t begin = static_cast<int64_t>(task) * portions.size;
      for (int64_t row = begin; row < std::min(rows, begin + portions.size); ++row) {
        embed(table, ids + row * context(), out + row * width_);
      }
    });
  }

 private:
  int64_t context() const { return coefficients_.shape[0]; }
  int64_t tables() const { return coefficients_.shape[1]; }

  void embed(const Kernels& table, const int64_t* window, float* out) const {
    std::memset(out, 0, static_cast<size_t>(width_) * sizeof *out);
    for (int64_t number = 0; number < tables(); ++number) {
      hashes_.add(table, number * vocab_size_ + hash(window, number), out);
    }
    const int64_t id = context() ? window[context() - 1] : -1;
    if (id < 0 || id >= bytes_.rows()) {
      throw OperatorError("windows names id " + std::to_string(id) + " of " + std::to_string(bytes_.rows()));
    }
    bytes_.add(table, id, out);
  }

  // The place in table `number`: a sum that wraps in 64 bits, and its non-negative remainder.
  int64_t hash(const int64_t* window, int64_t number) const {
    const auto* factors = static_cast<const int64_t*>(coefficients_.data) + number;
    uint64_t sum = 0;
    for (int64_t i = 0; i < context(); ++i) {
      sum += static_cast<uint64_t>(window[i]) * static_cast<uint64_t>(factors[i * tables()]);
    }
    const int64_t place = static_cast<int64_t>(sum) % vocab_size_;
    return place < 0 ? place + vocab_size_ : place;
  }

  int64_t width_, vocab_size_;
  Tensor coefficients_;
  StoredTable bytes_, hashes_;
};

}  // namespace

const Operator& hash_embedding_operator() {
  using namespace ort;
  static const Operator op(
      "HashEmbedding", 8,
      {kInt64, kInt64, kAny, kAny, kUint8, kAny, kAny, kUint8},  // windows, coefficients, two tables
      3, {kFloat}, [](const Node& node) -> Kernel* { return new HashEmbedding(node); });
  return op;
}

}  // namespace edgeblt
