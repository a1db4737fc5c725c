// What the products have in common: float32 inputs [.., K], rounded row by row and block by block to int8, times packed
// weights, give float32 [.., N].
#ifndef EDGEBLT_MATMUL_H
#define EDGEBLT_MATMUL_H

#include "kernels.h"
#include "operator.h"

namespace edgeblt {

class MatMul : public Kernel {
 public:
  explicit MatMul(const Node& node);
  void compute(const Call& call) final;

 protected:
  // Checks the weights, inputs 1 and later, and keeps where they are. Raises OperatorError for any that do not fit.
  virtual void bind(const std::vector<Tensor>& weights) = 0;
  // Rows [first, last) of the weights times all inputs; first is a multiple of 16.
  virtual void multiply(const Kernels&, const Inputs&, int64_t first, int64_t last, float* out) const = 0;
  virtual bool splits_inputs() const { return false; }

  // To be called last by constructors: weights that are initializers are checked once, others at every run.
  void bind_constants(const Node& node, size_t count, size_t required);
  // Scales [N, count], or [ceil(N / 2), count, 2] where rows go in pairs.
  Scales bind_scales(const Tensor& scales, bool pairs = false) const;

  int64_t columns_, rows_, bits_, block_size_, blocks_per_scale_, blocks_;

 private:
  Inputs round_inputs(const Call& call, const Kernels& table, const float* values, int64_t rows) const;

  size_t weight_count_ = 0;
  bool bound_ = false;
};

}  // namespace edgeblt

#endif
