// The operators of libedgeblt.
#include "operator.h"

namespace edgeblt {

std::vector<const Operator*> operators() {
  std::vector<const Operator*> all = {
      &entropy_patch_operator(), &dense_matmul_operator(), &sparse_matmul_operator(), &masked_matmul_operator(),
      &latent_attention_operator(), &dense_cross_attention_operator(), &hash_embedding_operator(),
      &patch_attention_operator(), &dense_pooling_operator(), &dense_projection_operator(),
      &causal_convolution_operator(), &selective_scan_operator()};
  for (const auto& some : {window_attention_operators(), dense_layer_operators()}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace edgeblt
