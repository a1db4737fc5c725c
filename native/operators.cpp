// The operators of libedgeblt.
#include "operator.h"

namespace edgeblt {

std::vector<const Operator*> operators() {
  return {&entropy_patch_operator(), &dense_matmul_operator(), &sparse_matmul_operator(), &masked_matmul_operator(),
          &window_attention_operator(), &dense_layer_operator(), &latent_attention_operator(),
          &dense_cross_attention_operator(), &hash_embedding_operator(), &patch_attention_operator(),
          &dense_pooling_operator()};
}

}  // namespace edgeblt
