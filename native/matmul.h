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

// multiply(inputs, first, last, out) for portions of the weights' rows, which begin at multiples of 16, and where these
// are few also of the inputs' rows, which begin with tiles. Where tiles are wide, products take an eighth of the time or
// less, and portions are whole panels (dense_amx.cpp).
template <typename Multiply>
void multiply_rows(
    const Call& call, const Kernels& table, const Form& form, const Inputs& inputs, float* out,
    const Multiply& multiply) {
  const double products = static_cast<double>(form.rows * form.columns) * static_cast<double>(inputs.rows);
  const bool wide = inputs.tiles && inputs.tile_width == kWideTile;
  const int64_t tasks = wanted_tasks(wide ? products / 8 : products);
  if (tasks == 1) return multiply(inputs, 0, form.rows, out);
  const Portions weights(form.rows, wide ? kWidePanel : kGroup, tasks);
  const Portions rows(inputs.rows, wide ? kWidePass : table.tile_rows, inputs.tiles ? tasks / weights.count : 1);
  call.parallel(static_cast<size_t>(weights.count * rows.count), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) % weights.count * weights.size;
    const int64_t row = static_cast<int64_t>(task) / weights.count * rows.size;
    const Inputs some = some_rows(inputs, row, std::min(rows.size, inputs.rows - row));
    multiply(some, first, std::min(form.rows, first + weights.size), out + row * form.rows);
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
