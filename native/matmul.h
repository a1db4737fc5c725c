// What the products have in common: float32 inputs [.., K], rounded row by row and block by block to int8, times packed
// weights, give float32 [.., N].
#ifndef EDGEBLT_MATMUL_H
#define EDGEBLT_MATMUL_H

#include <algorithm>
#include <mutex>
#include <string>

#include "input_tile.h"
#include "operator.h"
#include "tasks.h"
#include "workspace.h"

namespace edgeblt {

// An attribute that is at least 1 and below 2 ** 31; raises OperatorError for any other.
int64_t positive(const Node& node, const char* name);

// Sizes of a product with weights [rows, columns], and the blocks in which its inputs are rounded.
struct Form {
  // Reads the attributes `prefix`bits, `prefix`block_size and `prefix`blocks_per_scale; raises OperatorError.
  Form(const Node& node, int64_t columns, int64_t rows, const std::string& prefix = "");

  // Scales of all rows, each with `scales_per_row`: [rows, per row], or where `together` rows go side by side
  // [ceil(rows / together), per row, together].
  Scales scales(const Tensor& scales, int64_t together = 1, const char* name = "scales") const;

  int64_t scales_per_row() const { return (blocks + blocks_per_scale - 1) / blocks_per_scale; }

  int64_t columns, rows, bits, block_size, blocks_per_scale, blocks;
};

// Memory of the calling thread for rounded inputs, which the next ones overwrite.
class Rounding {
 public:
  // With `tiles` for dense products.
  Rounding(const Kernels& table, const Form& form, int64_t rows, bool tiles);
  void round(const Kernels& table, int64_t row, const float* values) const;
  const Inputs& inputs() const { return inputs_; }

 private:
  const int64_t values_;  // of a row
  int8_t* codes_;
  float* scales_;
  int32_t *sums_, *tiles_;
  Inputs inputs_;
};

// Rounds values(row), a pointer to `form.columns` floats, for all rows, on the session's threads where there is work
// for several.
template <typename Values>
Inputs round_rows(
    const Call& call, const Kernels& table, const Form& form, int64_t rows, bool tiles, const Values& values) {
  const Rounding rounding(table, form, rows, tiles);
  const Portions portions(rows, 1, wanted_tasks(static_cast<double>(rows) * static_cast<double>(form.columns)));
  call.parallel(static_cast<size_t>(portions.count), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * portions.size;
    for (int64_t row = begin; row < std::min(rows, begin + portions.size); ++row) {
      rounding.round(table, row, values(row));
    }
  });
  return rounding.inputs();
}

// A product in tasks: portions of the weights' rows, which begin at multiples of kWeightRows, and where these are few also
// of the inputs' rows, which begin with tiles. Where tiles are wide, products take an eighth of the time or less, and
// portions are whole panels (dense_amx.cpp). Where they are narrow there are more tasks: the last of them is what one
// thread does while others wait.
class ProductTasks {
 public:
  ProductTasks(const Kernels& table, const Form& form, const Inputs& inputs)
      : inputs_(inputs), columns_(form.rows), wanted_(wanted(form, inputs)), weights_(form.rows, kWeightRows, wanted_),
        rows_(inputs.rows, is_wide(inputs) ? kWidePass : table.tile_rows, inputs.tiles ? wanted_ / weights_.count : 1) {}

  int64_t count() const { return weights_.count * rows_.count; }

  // multiply(inputs, first, last, out) for one of them; `out` is that of the whole product.
  template <typename Multiply>
  void run(int64_t task, float* out, const Multiply& multiply) const {
    const int64_t first = task % weights_.count * weights_.size, row = task / weights_.count * rows_.size;
    const Inputs some = some_rows(inputs_, row, std::min(rows_.size, inputs_.rows - row));
    multiply(some, first, std::min(columns_, first + weights_.size), out + row * columns_);
  }

 private:
  static constexpr int64_t kWeightRows = kWidePanel;  // as many groups as AVX-512 reads side by side
  static constexpr int64_t kMostNarrow = 64;          // tasks

  static bool is_wide(const Inputs& inputs) { return inputs.tiles && inputs.tile_width == kWideTile; }

  static int64_t wanted(const Form& form, const Inputs& inputs) {
    const double products = static_cast<double>(form.rows * form.columns) * static_cast<double>(inputs.rows);
    return is_wide(inputs) ? wanted_tasks(products / 8) : wanted_tasks(products, kMostNarrow);
  }

  const Inputs& inputs_;
  int64_t columns_, wanted_;
  Portions weights_, rows_;
};

// multiply(inputs, first, last, out) for all tasks of a product, on the session's threads.
template <typename Multiply>
void multiply_rows(
    const Call& call, const Kernels& table, const Form& form, const Inputs& inputs, float* out,
    const Multiply& multiply) {
  const ProductTasks tasks(table, form, inputs);
  call.parallel(static_cast<size_t>(tasks.count()), [&](size_t task) {
    tasks.run(static_cast<int64_t>(task), out, multiply);
  });
}

// An operator that is one product.
class MatMul : public Kernel {
 public:
  explicit MatMul(const Node& node);
  void compute(const Call& call) final;

 protected:
  // Checks the weights, inputs 1 and later, and keeps where they are. Raises OperatorError for any that do not fit.
  // Weights that are no initializers are those of one run: none begins before it ends.
  virtual void bind(const std::vector<Tensor>& weights) = 0;
  // Rows [first, last) of the weights times all inputs; first is a multiple of 16.
  virtual void multiply(const Kernels&, const Inputs&, int64_t first, int64_t last, float* out) const = 0;
  virtual bool takes_tiles() const { return false; }
  // Called first of all: the weights to be read first may be asked for.
  virtual void prefetch() const {}

  // To be called last by constructors: weights that are initializers are checked once, others at every run.
  void bind_constants(const Node& node, size_t count);

  const Form form_;

 private:
  void bind_inputs(const Call& call);

  size_t weight_count_ = 0;
  bool bound_ = false;
  std::mutex unbound_;
};

}  // namespace edgeblt

#endif
