"""Configuration fields of other Llama-like models: switches, which change what such a model computes, and their neutral
values; and fields that never change it.

transformers keeps any field in a configuration and reads only those that its model knows, so they end up in a BLT's
`config.json`. A BLT computes as if each switch were neutral; another value shows that another model was meant. Source:
the `configuration_*.py` and `modeling_*.py` of transformers (llama, mistral, qwen, gemma, granite, cohere, phi, olmo,
smollm3, glm, falcon, gpt_neox, minicpm, deepseek and others).
"""

import math
from collections.abc import Mapping

from edgeblt.bundle.config import LIMIT
from edgeblt.export.checkpoints.config_section import Document, FieldRule, only

NOTHING = (None, 0, False)
OFF = only(*NOTHING, because="only false, or no such field")
ON = only(None, 1, True, because="only true, or no such field")
ABSENT = only(*NOTHING, "", [], {}, because="only null, or no such field")
ONE = only(None, 1, because="only 1.0, or no such field")
FEW_EXPERTS: tuple[object, ...] = (None, 0, 1, [])
EXPERT_COUNTS = ("moe_num_experts", "n_routed_experts", "num_experts", "num_local_experts")
FEW = only(*FEW_EXPERTS, False, because="only 0, or no such field")


def _table(rule: FieldRule, names: str) -> dict[str, FieldRule]:
    return dict.fromkeys(names.split(), rule)


def _same_as(name: str, default: object) -> FieldRule:
    def is_neutral(value: object, document: Document) -> bool:
        other = document.get(name, default)
        return value is None or (value == other and type(value) is not bool)

    return FieldRule(f"only the value of {name}, or no such field", is_neutral)


def head_dim(document: Document) -> int | None:
    """Size of a head; None if the fields that give it are no numbers."""
    width, heads = document.get("hidden_size"), document.get("num_attention_heads")
    if type(width) is not int or type(heads) is not int or not 0 < heads <= width:
        return None
    return width // heads


def _is_head_dim(value: object, document: Document) -> bool:
    return value is None or (value == head_dim(document) and type(value) is not bool)


def _is_near(value: object, other: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LIMIT:
        return False
    return math.isclose(value, other, rel_tol=1e-6)


def _is_usual_scale(value: object, document: Document) -> bool:
    size = head_dim(document)
    return value is None or (size is not None and _is_near(value, size**-0.5))


def _is_root_of_layers(value: object, document: Document) -> bool:
    layers = document.get("num_hidden_layers")
    return value is None or (type(layers) is int and 0 < layers < LIMIT and _is_near(value, layers**0.5))


def _no_experts(value: object, document: Document) -> bool:
    counts = [document[name] for name in EXPERT_COUNTS if name in document]
    return value in FEW_EXPERTS or (bool(counts) and all(count in FEW_EXPERTS for count in counts))


def _all_layers_full(value: object, document: Document) -> bool:
    full = ("full_attention", "attention", "global")
    return value is None or (isinstance(value, list) and all(kind in full for kind in value))


def _all_layers_dense(value: object, document: Document) -> bool:
    return value is None or (isinstance(value, list) and all(kind == "dense" for kind in value))


def _all_layers_rotate(value: object, document: Document) -> bool:
    return value is None or (isinstance(value, list) and all(layer == 1 for layer in value))


def _is_window_off(value: object, document: Document) -> bool:
    return value in NOTHING or document.get("use_sliding_window") is False


def _interval_unused(value: object, document: Document) -> bool:
    """Whether the interval is unused: SmolLM3 and Llama 4 derive a list of layers from it only if there is no list."""
    layers = document.get("no_rope_layers")
    return value in NOTHING or (isinstance(layers, list) and bool(layers) and _all_layers_rotate(layers, document))


def _all_ones(value: object, document: Document) -> bool:
    return value is None or (isinstance(value, list) and all(item == 1 and type(item) is not bool for item in value))


HEAD = FieldRule("only hidden_size over num_attention_heads, or no such field", _is_head_dim)
ACTIVATION = _same_as("hidden_act", "silu")
EPSILON = _same_as("rms_norm_eps", 1e-5)
THETA = _same_as("rope_theta", None)

SWITCHES: Mapping[str, FieldRule] = {
    # Biases.
    **_table(
        OFF,
        "add_bias_linear add_qkv_bias attention_bias attention_in_bias attention_out_bias attention_output_bias "
        "attn_bias bias lm_head_bias mlp_bias norm_bias o_proj_bias projectors_bias qkv_bias "
        "use_attention_bias use_bias use_qkv_bias",
    ),
    # Norms, residuals and gates that BLT's layers do not have, or have otherwise.
    **_table(
        OFF,
        "add_unit_offset apply_residual_connection_post_layernorm attention_k_eq_v attn_output_gate gating k_norm "
        "multi_query norm_after normalize_embedding normalize_embeddings parallel_attn parallel_residual post_norm "
        "q_norm qk_layer_norms qk_layernorm qk_norm query_key_norm sandwich_norm scale_embedding use_attention_gate "
        "tie_codebooks_embeddings use_double_wide_mlp use_parallel_residual use_post_norm use_qk_layernorm "
        "use_qk_norm use_sandwich_norm use_mup mup_enabled zero_centered_gamma new_decoder_architecture "
        "scale_attn_by_inverse_layer_idx",
    ),
    **_table(ABSENT, "qk_norm_type clip_qkv max_qk_clip swiglu_limit swiglu_limits activation_sparsity_pattern"),
    "gated_mlp": ON,
    "hidden_activation": ACTIVATION,
    "activation_function": ACTIVATION,
    "activation": ACTIVATION,
    "mlp_activation": ACTIVATION,
    "layer_norm_eps": EPSILON,
    "layer_norm_epsilon": EPSILON,
    "rms_norm_epsilon": EPSILON,
    "norm_epsilon": EPSILON,
    # Scales and caps of what passes through.
    **_table(
        ONE,
        "attention_in_multiplier attention_out_multiplier attention_value_scale embedding_multiplier embedding_scale "
        "key_multiplier lm_head_multiplier logit_scale logits_mup_width_multiplier logits_scaling mup_width_multiplier "
        "output_multiplier qk_scale_factor residual_multiplier residual_scale scale_emb",
    ),
    "mlp_multipliers": FieldRule("only 1.0 each, or no such field", _all_ones),
    # Granite's default, which it never means: its attention is then not scaled at all.
    "attention_multiplier": FieldRule(
        "only hidden_size over num_attention_heads to the power -0.5", _is_usual_scale, doubtful=(1,)
    ),
    "query_pre_attn_scalar": HEAD,
    **_table(
        ABSENT,
        "attn_logit_softcapping attention_logit_softcapping attn_logit_cap final_logit_softcapping logit_softcapping "
        "logits_soft_cap output_logit_soft_cap attn_soft_cap final_logit_soft_cap",
    ),
    "dim_model_base": _same_as("hidden_size", None),
    "scale_depth": FieldRule("only the square root of num_hidden_layers, or no such field", _is_root_of_layers),
    **_table(OFF, "attn_temperature_tuning use_bidirectional_attention use_attention_sinks use_logn_attn"),
    # The positions that attention sees.
    "is_causal": only(True),
    "sliding_window": FieldRule("only null, or with use_sliding_window false", _is_window_off),
    **_table(OFF, "use_sliding_window is_prefix_lm prefix_lm"),
    **_table(ABSENT, "attention_chunk_size attention_window sliding_window_size attention_sink_size"),
    **_table(
        only(*NOTHING, 1, because="only 1, or no such field"),
        "sliding_window_pattern global_attn_every_n_layers",
    ),
    "layer_types": FieldRule("only full_attention for each layer, or no such field", _all_layers_full),
    **_table(ABSENT, "num_kv_shared_layers kv_sharing_modes layers_block_type block_types full_attn_idxs"),
    # Positions.
    **_table(ONE, "partial_rotary_factor rope_ratio rotary_pct rotary_percent"),
    "rotary_dim": HEAD,
    "rope_interleave": ON,
    "rope_interleaved": ON,
    "rotary_emb_interleaved": ON,
    "no_rope_layers": FieldRule("only 1 for each layer, or no such field", _all_layers_rotate),
    **_table(
        FieldRule("only 0, or with no_rope_layers 1 for each layer", _interval_unused),
        "no_rope_layer_interval nope_layer_interval",
    ),
    **_table(THETA, "rope_local_base_freq local_rope_theta global_rope_theta rotary_emb_base rotary_embedding_base"),
    **_table(ABSENT, "layer_rope_theta rope_scaling_layers long_rope_scaling use_dynamic_ntk"),
    **_table(OFF, "alibi use_alibi"),
    "position_embedding_type": only(None, "rope", "rotary"),
    # Layers of other kinds.
    **dict.fromkeys(EXPERT_COUNTS, FEW),
    **_table(
        FieldRule("only 0, or no such field", _no_experts),
        "moe_k moe_num_shared_experts moe_topk n_shared_experts num_experts_per_tok num_shared_experts top_k_experts",
    ),
    **_table(OFF, "is_moe enable_moe_block"),
    "mlp_layer_types": FieldRule("only dense for each layer, or no such field", _all_layers_dense),
    **_table(
        ABSENT,
        "q_lora_rank kv_lora_rank o_lora_rank qk_rope_head_dim qk_nope_head_dim laurel_rank altup_num_inputs "
        "hidden_size_per_layer_input vocab_size_per_layer_input mamba_d_state mamba_d_conv mamba_expand ssm_cfg "
        "num_attention_heads_per_layer hc_mult index_topk moe_layers",
    ),
    "v_head_dim": HEAD,
    # The whole model.
    "pm_size": OFF,
    "per_layer_config": ABSENT,
    "pruned_heads": ABSENT,
    **_table(
        only(None, because="it holds another model"),
        "decoder generator text_config text_encoder vision_config audio_config",
    ),
    "transformers_weights": only(None, because="it names files of weights that edgeblt does not read"),
    **_table(
        only(None, {}, because="the weights are quantized; give them in bfloat16, float16 or float32"),
        "compression_config quantization quantization_config",
    ),
}

# fmt: off
HARMLESS = frozenset({
    # Training, caches, kernels, bookkeeping of other software; and what is read only where there are experts.
    "_fsdp_wrapped", "attn_scale", "aux_loss_alpha", "base_model", "bf16", "bos_token", "cache_implementation",
    "chat_template", "decoder_sparse_step", "deterministic_flash_attn", "distributed_config", "dropout_p",
    "eos_token", "expert_layer_offset", "expert_layer_period", "extra_config_files", "first_k_dense_replace",
    "floor_scale", "fp16", "fp32", "fuse_cross_entropy", "fuse_norm", "fused_bias_fc", "fused_mlp", "fusion_config",
    "gradient_checkpointing_kwargs", "init_method_std", "init_std", "initializer_cutoff_factor", "initializer_factor",
    "input_jitter_noise", "is_sequential", "keys_to_ignore_at_inference", "label_smoothing", "layerdrop",
    "library_name", "license", "logits_to_keep", "max_seq_len", "max_seq_length", "max_sequence_length",
    "max_window_layers", "mlp_only_layers", "model_max_length", "model_parallel_size", "moe_intermediate_size",
    "moe_layer_end_index", "moe_layer_freq", "moe_layer_interval", "moe_layer_start_index", "n_ctx", "n_group",
    "n_positions", "norm_topk_prob", "num_logits_to_keep", "original_max_position_embeddings", "output_router_logits",
    "pad_head_dim_to_multiple_of", "pad_token", "pad_vocab_size_multiple", "pretraining_tp", "residual_in_fp32",
    "routed_scaling_factor", "router_jitter_noise", "router_z_loss", "scoring_func", "seed", "seq_aux", "seq_length",
    "shared_expert_intermediate_size", "shared_intermediate_size", "softmax_in_fp32", "tags", "topk_group",
    "topk_method", "tp_plan", "trust_remote_code", "unk_token", "use_cache_kernel", "use_cache_quantization",
    "use_flash_attention", "use_flash_attn", "use_fused_rms_norm", "use_fused_swiglu", "use_return_dict",
    "z_loss_coefficient",
})
# fmt: on


def switches_beside(read: frozenset[str]) -> dict[str, FieldRule]:
    """The switches whose names a BLT itself does not read."""
    return {name: rule for name, rule in SWITCHES.items() if name not in read}
