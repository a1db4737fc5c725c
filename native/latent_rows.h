// Attention of bytes to the vectors of their latents: what LatentAttention is, and cross-attention has in it.
#ifndef EDGEBLT_LATENT_ROWS_H
#define EDGEBLT_LATENT_ROWS_H

#include "kernels.h"
#include "operator.h"

namespace edgeblt {

// Inputs: a latent's keys and values for all layers as one row. The first rows are carried over, the others are new.
struct LatentInputs {
  Tensor carried, rows, index;  // the row of each byte
};

class LatentRows {
 public:
  // Reads the attributes num_heads, kv_num_heads, head_dim, vectors, offset and scale; raises OperatorError.
  explicit LatentRows(const Node& node);

  int64_t attended_width() const { return attention_.heads * attention_.width; }

  // Raises OperatorError for rows that do not fit, and for an index that names none.
  void check(const LatentInputs& inputs, int64_t bytes) const;

  // What the queries [bytes, attended_width] attend to, of the same shape.
  void run(const Call& call, const LatentInputs& inputs, int64_t bytes, const float* queries, float* attended) const;

 private:
  LatentAttention attention_;
  int64_t offset_, end_;  // of the layer's keys and values in a row
};

}  // namespace edgeblt

#endif
