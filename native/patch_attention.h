// Attention of the vectors of patches to the patches' own bytes: what PatchAttention is, and DensePooling has in it.
#ifndef EDGEBLT_PATCH_ATTENTION_H
#define EDGEBLT_PATCH_ATTENTION_H

#include "kernels.h"
#include "patch_rows.h"

namespace edgeblt {

class PatchHeads {
 public:
  // Reads the attributes num_heads, kv_num_heads, head_dim, vectors and scale; raises OperatorError.
  explicit PatchHeads(const Node& node);

  int64_t vectors() const { return vectors_; }  // of a patch
  int64_t attended_width() const { return attention_.heads * attention_.width; }
  int64_t projected_width() const { return 2 * attention_.kv_heads * attention_.width; }  // of a byte's key and value

  // What the queries [patches * vectors, attended_width] attend to, of the same shape; `projected`, the keys and values
  // of the patches' bytes [rows, projected_width], lie in the order of `rows`. Zeros for a patch that has no bytes.
  void run(const Call& call, const PatchRows& rows, const float* queries, const float* projected, float* attended) const;

 private:
  LatentAttention attention_;  // but for the number of keys
  int64_t vectors_;
};

}  // namespace edgeblt

#endif
