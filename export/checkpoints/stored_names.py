"""Names under which checkpoints store the weights that this package calls by canonical names.

Sources: transformers, `models/blt/modeling_blt.py`; facebookresearch/blt, `bytelatent/model` and
`bytelatent/base_transformer.py`.
"""

from collections.abc import Mapping
from typing import NamedTuple

from edgeblt.quant.recipes.recipe import HASH_TABLES

TRANSFORMERS_HEAD, TRANSFORMERS_EMBEDDING = "lm_head.weight", "model.local_encoder.embed_tokens.weight"
META_STAGES = {
    "patcher": "",
    "encoder": "local_encoder.",
    "global": "global_transformer.",
    "decoder": "local_decoder.",
}  # prefixes

_STAGES = {
    "patcher": "model.patcher.",
    "encoder": "model.local_encoder.",
    "global": "model.global_transformer.",
    "decoder": "model.local_decoder.",
}  # prefixes
TRANSFORMERS_PARTS = {
    "embedding": "embed_tokens",
    "patch_projection": "patch_embedding_projection",
    "projection": "token_embedding_projection",
    "norm": "norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_CROSS_PARTS = {
    "query_norm": "q_norm",
    "key_norm": "k_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
}
_META_ATTENTION = {"query": "wq", "key": "wk", "value": "wv", "output": "wo"}
_META_PARTS = {
    "embedding": "tok_embeddings",
    "patch_projection": "patch_embedding_projection",
    "projection": "token_embedding_projection",
    "norm": "norm",
    "head": "output",
}
_META_LAYER_PARTS = {
    "attention_norm": "attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "feed_forward.w1",
    "down": "feed_forward.w2",
    "up": "feed_forward.w3",
    **{part: f"attention.{name}" for part, name in _META_ATTENTION.items()},
}
_META_CROSS_PARTS = {"query_norm": "cross_attn_norm_q", "key_norm": "cross_attn_norm_kv", **_META_ATTENTION}


class _Names(NamedTuple):
    """Names that one form of checkpoint has for stages, and for parts of stages, layers and cross-attention."""

    stages: Mapping[str, str]  # prefixes
    parts: Mapping[str, str]
    layer_parts: Mapping[str, str]
    cross_parts: Mapping[str, str]

    def stored(self, name: str, encoder_cross_layer: int) -> str:
        """The stored name of a canonical tensor name."""
        stage, *middle, part = name.split(".")
        match middle:
            case ["layers", layer]:
                return f"{self.stages[stage]}layers.{layer}.{self.layer_parts[part]}.weight"
            case ["cross", *layers]:
                layer = layers[0] if layers else str(encoder_cross_layer)
                return f"{self.stages[stage]}cross_attn_layers.{layer}.{self.cross_parts[part]}.weight"
        return f"{self.stages[stage]}{self.parts[part]}.weight"


_TRANSFORMERS = _Names(_STAGES, TRANSFORMERS_PARTS, TRANSFORMERS_PARTS, _CROSS_PARTS)
_META = _Names(META_STAGES, _META_PARTS, _META_LAYER_PARTS, _META_CROSS_PARTS)


def transformers_name(name: str, encoder_cross_layer: int) -> str:
    """transformers' name of a canonical tensor name.

    encoder_cross_layer: index of the one cross-attention layer that transformers' encoder uses among those it stores.
    """
    if name == HASH_TABLES:
        return "model.encoder_hash_tok_embedding.weight"
    if name == "decoder.head":
        return TRANSFORMERS_HEAD
    return _TRANSFORMERS.stored(name, encoder_cross_layer)


def meta_name(name: str) -> str:
    """Meta's name of a canonical tensor name other than HASH_TABLES, whose tables are stored one by one."""
    return _META.stored(name, 0)
