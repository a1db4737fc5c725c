"""What transformers makes of a checkpoint's configuration and weights, found without any tensor's name."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import BltConfig

from edgeblt.bundle.config import HashConfig, ModelConfig, PatchingRule, Rule, TransformerConfig


def stack_as_loaded(stack: Any, window: int | None) -> TransformerConfig:
    return TransformerConfig(
        hidden_size=stack.hidden_size,
        layer_count=stack.num_hidden_layers,
        head_count=stack.num_attention_heads,
        kv_head_count=stack.num_key_value_heads,
        intermediate_size=stack.intermediate_size,
        norm_epsilon=stack.rms_norm_eps,
        rope_theta=stack.rope_parameters["rope_theta"],
        window=window,
        activation=stack.hidden_act,
    )


def config_as_loaded(config: Any) -> ModelConfig:
    by_entropy = config.patching_mode == "entropy" and config.patch_in_forward
    patching, patcher = PatchingRule(Rule.BYTE), config.patcher_config
    if by_entropy:
        patching = PatchingRule(Rule.THRESHOLD, config.patching_threshold, max_patch_length=config.max_patch_length)
    return ModelConfig(
        vocab_size=config.vocab_size,
        cross_attention_k=config.cross_attn_k,
        patcher=stack_as_loaded(patcher, patcher.sliding_window) if by_entropy else None,
        encoder=stack_as_loaded(config.encoder_config, config.encoder_config.sliding_window),
        global_=stack_as_loaded(config.global_config, None),
        decoder=stack_as_loaded(config.decoder_config, config.encoder_config.sliding_window),
        decoder_cross_all_layers=bool(config.decoder_config.cross_attn_all_layers),
        hashes=HashConfig(
            config.encoder_hash_byte_group_nb_functions,
            tuple(config.encoder_hash_byte_group_size),
            config.encoder_hash_byte_group_vocab,
        ),
        patching=patching,
    )


def attention_modules(prefix: str, attention: Any) -> Iterator[tuple[str, Any]]:
    yield f"{prefix}.query", attention.q_proj
    yield f"{prefix}.key", attention.k_proj
    yield f"{prefix}.value", attention.v_proj
    yield f"{prefix}.output", attention.o_proj


def stack_modules(stage: str, stack: Any) -> Iterator[tuple[str, Any]]:
    for index, layer in enumerate(stack.layers):
        prefix = f"{stage}.layers.{index}"
        yield f"{prefix}.attention_norm", layer.input_layernorm
        yield from attention_modules(prefix, layer.self_attn)
        yield f"{prefix}.mlp_norm", layer.post_attention_layernorm
        yield f"{prefix}.gate", layer.mlp.gate_proj
        yield f"{prefix}.up", layer.mlp.up_proj
        yield f"{prefix}.down", layer.mlp.down_proj


def cross_modules(prefix: str, cross: Any) -> Iterator[tuple[str, Any]]:
    yield f"{prefix}.query_norm", cross.q_norm
    yield f"{prefix}.key_norm", cross.k_norm
    yield from attention_modules(prefix, cross)


def modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Canonical name -> module, for everything that the model's output depends on."""
    patcher, encoder, decoder = model.model.patcher, model.model.local_encoder, model.model.local_decoder
    global_ = model.model.global_transformer
    if patcher is not None and model.config.patching_mode == "entropy":
        yield "patcher.embedding", patcher.embed_tokens
        yield from stack_modules("patcher", patcher)
        yield "patcher.norm", patcher.norm
        yield "patcher.head", patcher.lm_head
    yield "encoder.embedding", encoder.embed_tokens
    yield "encoder.hash_tables", model.model.encoder_hash_tok_embedding
    yield from stack_modules("encoder", encoder)
    yield "encoder.patch_projection", encoder.patch_embedding_projection
    yield from cross_modules("encoder.cross", encoder.cross_attn_layers[-1])
    if not isinstance(global_.token_embedding_projection, torch.nn.Identity):
        yield "global.projection", global_.token_embedding_projection
    yield from stack_modules("global", global_)
    yield "decoder.patch_projection", decoder.patch_embedding_projection
    for index, cross in enumerate(decoder.cross_attn_layers):
        yield from cross_modules(f"decoder.cross.{index}", cross)
    yield from stack_modules("decoder", decoder)
    yield "decoder.norm", decoder.norm
    yield "decoder.head", model.lm_head


def small_config(**fields: Any) -> Any:
    """The smallest model here with two layers in every stack and every cross-attention."""
    stack = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
    document: dict[str, Any] = {
        "encoder_hash_byte_group_vocab": 11,
        "patcher_config": dict(stack),
        "encoder_config": stack | {"cross_attn_all_layers": True},
        "global_config": stack | {"hidden_size": 10, "num_attention_heads": 1},
        "decoder_config": stack | {"hidden_size_global": 10},
    }
    return BltConfig(**(document | fields))


def assert_one_sentence(message: str) -> None:
    assert message.isprintable() and 20 < len(message) < 700, message
