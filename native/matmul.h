// What the products have in common: float32 inputs [.., K], rounded row by row and block by block to int8, times packed
// weights, give float32 [.., N].
#ifndef EDGEBLT_MATMUL_H
#define EDGEBLT_MATMUL_H

#include <algorithm>
#include <mutex>
#include <string>

#include "kernels.h"
#include "operator.h"
#include "workspace.h"

namespace edgeblt {

constexpr int64_t kTaskProducts = 65536;  // below this, handing work to a thread takes longer than it saves
constexpr int64_t kMostTasks = 16;

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
  Rounding(const Form& form, int64_t rows);
  void round(const Kernels& table, int64_t row, const float* values) const;
  Inputs inputs() const { return {rows_, padded_, form_.block_size, form_.blocks, stride_, codes_, scales_, sums_}; }

 private:
  const Form& form_;
  int64_t rows_, padded_, stride_;
  int8_t* codes_;
  float* scales_;
  int32_t* sums_;
};

// Rounds values(row), a pointer to `form.columns` floats, for all rows, on the session's threads where there is work
// for several.
template <typename Values>
Inputs round_rows(
    const Call& call, const Kernels& table, const Form& form, int64_t rows, const Values& values) {
  const Rounding rounding(form, rows);
  const int64_t tasks = std::clamp<int64_t>(rows * form.columns / kTaskProducts, 1, kMostTasks);
  const int64_t portion = (rows + tasks - 1) / tasks;
  call.parallel(static_cast<size_t>(tasks), [&](size_t task) {
    const int64_t begin = static_cast<int64_t>(task) * portion;
    for (int64_t row = begin; row < std::min(rows, begin + portion); ++row) rounding.round(table, row, values(row));
  });
  return rounding.inputs();
}

// multiply(first, last) for all rows of the weights, times so many rows of inputs, in portions that start at multiples
// of 16.
template <typename Multiply>
void multiply_rows(const Call& call, const Form& form, int64_t inputs, const Multiply& multiply) {
  constexpr int64_t kRowUnit = 16;
  const double products = static_cast<double>(form.rows * form.columns) * static_cast<double>(inputs);
  const int64_t units = (form.rows + kRowUnit - 1) / kRowUnit;
  const auto wanted = static_cast<int64_t>(std::min<double>(products / kTaskProducts, kMostTasks));
  const int64_t tasks = std::clamp<int64_t>(wanted, 1, units);
  const int64_t portion = (units + tasks - 1) / tasks;
  call.parallel(static_cast<size_t>((units + portion - 1) / portion), [&](size_t task) {
    const int64_t first = static_cast<int64_t>(task) * portion * kRowUnit;
    multiply(first, std::min(form.rows, first + portion * kRowUnit));
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
