"""Fields of other Llama-like models' configurations, at values at which such a model computes as a BLT does.

Source: transformers 5.23, the `configuration_*.py` of each, and its `modeling_*.py` for what is neutral.
`foreign_config` spreads them over small BLT configurations.
"""

import copy
import random
from typing import Any

import tiny_models

Document = dict[str, Any]
SECTIONS = ("patcher_config", "encoder_config", "global_config", "decoder_config")
COUNT = 60


def families(stack: Document) -> dict[str, Document]:
    """By model: fields for the object of this stack."""
    layers, width = stack["num_hidden_layers"], stack["hidden_size"]
    head_dim = width // stack["num_attention_heads"]
    activation, epsilon = stack["hidden_act"], stack["rms_norm_eps"]
    theta = stack["rope_parameters"]["rope_theta"]
    # fmt: off
    return {
        "llama": {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "pretraining_tp": 1,
                  "rope_scaling": None, "head_dim": None},
        "mistral": {"attention_dropout": 0.1, "max_position_embeddings": 131072, "eos_token_id": 2},
        "mixtral": {"num_local_experts": 0, "num_experts_per_tok": 0, "output_router_logits": False,
                    "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0},
        "qwen2": {"use_sliding_window": False, "max_window_layers": 28,
                  "layer_types": ["full_attention"] * layers},
        "qwen3_moe": {"num_experts": 0, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False,
                      "decoder_sparse_step": 1, "mlp_only_layers": [], "attention_bias": False},
        "qwen3_next": {"partial_rotary_factor": 1.0, "attn_output_gate": False, "shared_expert_intermediate_size": 512},
        "gemma2": {"final_logit_softcapping": None, "attn_logit_softcapping": None, "query_pre_attn_scalar": head_dim,
                   "hidden_activation": activation, "use_bidirectional_attention": None},
        "gemma3": {"rope_local_base_freq": theta, "sliding_window_pattern": 1, "hidden_activation": None},
        "granite": {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
                    "attention_multiplier": head_dim**-0.5},
        "cohere": {"logit_scale": 1.0, "use_qk_norm": False, "layer_norm_eps": epsilon, "pad_token_id": 0},
        "phi": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "qk_layernorm": False, "partial_rotary_factor": 1.0},
        "phi3": {"original_max_position_embeddings": 4096, "resid_pdrop": 0.1, "attention_dropout": 0.0},
        "olmo": {"clip_qkv": None, "tie_word_embeddings": False, "use_cache": True},
        "smollm3": {"no_rope_layers": [1] * layers, "no_rope_layer_interval": 4, "use_sliding_window": False},
        "llama4": {"attn_temperature_tuning": False, "floor_scale": 8192, "attn_scale": 0.1, "moe_layers": [],
                   "attention_chunk_size": None, "use_qk_norm": False},
        "deepseek": {"n_routed_experts": None, "n_shared_experts": None, "q_lora_rank": None, "kv_lora_rank": None,
                     "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "topk_method": "greedy",
                     "v_head_dim": head_dim, "n_group": 8, "topk_group": 4, "rope_interleave": True},
        "stablelm": {"use_qkv_bias": False, "use_parallel_residual": False, "hidden_dropout": 0.1},
        "falcon": {"alibi": False, "bias": False, "parallel_attn": False, "new_decoder_architecture": False},
        "gpt_neox": {"rotary_pct": 1.0, "rotary_emb_base": theta, "use_parallel_residual": False,
                     "classifier_dropout": 0.1, "attention_bias": False},
        "starcoder2": {"use_bias": False, "norm_epsilon": epsilon, "embedding_dropout": 0.1, "residual_dropout": 0.1},
        "falcon_h1": {"key_multiplier": 1.0, "lm_head_multiplier": 1.0, "mlp_multipliers": [1.0, 1.0],
                      "attention_in_multiplier": 1.0, "attention_out_multiplier": 1.0, "projectors_bias": False},
        "minicpm": {"scale_emb": 1, "dim_model_base": width, "scale_depth": layers**0.5},
        "glm4_moe": {"num_experts_per_tok": None, "n_routed_experts": 0, "partial_rotary_factor": 1.0},
        "gemma3n": {"num_kv_shared_layers": 0, "altup_num_inputs": None, "laurel_rank": None,
                    "activation_sparsity_pattern": None, "hidden_size_per_layer_input": 0},
        "software": {"unsloth_version": "2026.1", "unsloth_fixed": True, "torch_dtype": "bfloat16", "tags": ["a"],
                     "transformers_version": "4.57.1", "_name_or_path": "x/y", "use_flash_attention": True},
        "emptied": {"quantization_config": {}, "compression_config": None, "pruned_heads": {}, "bad_words_ids": None,
                    "task_specific_params": None, "vision_config": None, "text_config": None},
        "unscaled": {"rope_scaling": {"type": "linear", "factor": 1.0, "rope_theta": theta}},
        "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "rope_theta": theta,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}},
    }
    # fmt: on


def foreign_config(seed: int) -> tuple[Document, Document]:
    """A random configuration as its `config.json` has it; and the same with the fields of a few other models."""
    plain = tiny_models.random_config(seed).to_dict()
    plain.pop("transformers_version", None)
    rng, document = random.Random(f"foreign {seed}"), copy.deepcopy(plain)
    for name in SECTIONS:
        found = families(document[name])
        for model in rng.sample(sorted(found), 4):
            document[name] |= found[model]
        if document[name].get("rope_scaling"):
            document[name].pop("rope_parameters")
    top = families(plain["decoder_config"])
    for model in rng.sample(sorted(top.keys() - {"unscaled", "llama3", "gemma3", "gpt_neox", "starcoder2"}), 4):
        document |= {key: value for key, value in top[model].items() if key not in plain}
    return plain, document
