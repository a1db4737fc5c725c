// Attention of bytes to the vectors of their latents: what LatentAttention is, and cross-attention has in it.
#ifndef EDGEBLT_LATENT_ROWS_H
#define EDGEBLT_LATENT_ROWS_H

#include "kernels.h"
#include "operator.h"

namespace edgeblt {

// Inputs. The first rows are carried over, each a latent's keys and values for all layers; the others are new.
struct LatentInputs {
  Tensor carried, index;  // index: the row of each byte
  int64_t count;          // of new rows
  const float* rows;      // the layer's part of the first new row
  int64_t stride;         // from one to the next
};

class LatentRows {
 public:
  // Reads the attributes num_heads, kv_num_heads, head_dim, vectors, offset and scale; raises OperatorError.
  explicit LatentRows(const Node& node);

  int64_t attended_width() const { return attention_.heads * attention_.width; }
  const LatentAttention& attention() const { return attention_; }
  int64_t offset() const { return offset_; }
  int64_t row_width() const { return end_ - offset_; }  // of the layer's part

  // Raises OperatorError for carried rows that do not fit, and for an index that names no row.
  void check(const LatentInputs& inputs, int64_t bytes) const;

  // What the queries [bytes, attended_width] attend to, of the same shape.
  void run(const Call& call, const LatentInputs& inputs, int64_t bytes, const float* queries, float* attended) const;

 private:
  LatentAttention attention_;
  int64_t offset_, end_;  // of the layer's keys and values in a row
};

}  // namespace edgeblt

#endif
