"""Names under which checkpoints store the weights that this package calls by canonical names.

Sources: transformers, `models/blt/modeling_blt.py`; facebookresearch/blt, `bytelatent/model` and
`bytelatent/base_transformer.py`.
"""

from edgeblt.quant.recipes.recipe import HASH_TABLES

TRANSFORMERS_HEAD, TRANSFORMERS_EMBEDDING = "lm_head.weight", "model.local_encoder.embed_tokens.weight"
META_STAGES = {
    "patcher": "",
    "encoder": "local_encoder.",
    "global": "global_transformer.",
    "decoder": "local_decoder.",
}  # prefixes

_STAGES = {
    "patcher": "model.patcher",
    "encoder": "model.local_encoder",
    "global": "model.global_transformer",
    "decoder": "model.local_decoder",
}
_PARTS = {
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


def transformers_name(name: str, encoder_cross_layer: int) -> str:
    """transformers' name of a canonical tensor name.

    encoder_cross_layer: index of the one cross-attention layer that transformers' encoder uses among those it stores.
    """
    if name == HASH_TABLES:
        return "model.encoder_hash_tok_embedding.weight"
    if name == "decoder.head":
        return TRANSFORMERS_HEAD
    stage, *middle, part = name.split(".")
    match middle:
        case ["layers", layer]:
            return f"{_STAGES[stage]}.layers.{layer}.{_PARTS[part]}.weight"
        case ["cross"]:
            return f"{_STAGES[stage]}.cross_attn_layers.{encoder_cross_layer}.{_CROSS_PARTS[part]}.weight"
        case ["cross", layer]:
            return f"{_STAGES[stage]}.cross_attn_layers.{layer}.{_CROSS_PARTS[part]}.weight"
    return f"{_STAGES[stage]}.{_PARTS[part]}.weight"


def meta_name(name: str) -> str:
    """Meta's name of a canonical tensor name other than HASH_TABLES, whose tables are stored one by one."""
    stage, *middle, part = name.split(".")
    match middle:
        case ["layers", layer]:
            return f"{META_STAGES[stage]}layers.{layer}.{_META_LAYER_PARTS[part]}.weight"
        case ["cross"]:
            return f"{META_STAGES[stage]}cross_attn_layers.0.{_META_CROSS_PARTS[part]}.weight"
        case ["cross", layer]:
            return f"{META_STAGES[stage]}cross_attn_layers.{layer}.{_META_CROSS_PARTS[part]}.weight"
    return f"{META_STAGES[stage]}{_META_PARTS[part]}.weight"
