"""Builds transformers' `BltForCausalLM` from a checkpoint in any other form."""

import dataclasses
from typing import Any

import torch
from transformers import BltConfig, BltForCausalLM

from edgeblt.bundle.config import ModelConfig, PatchingRule, Rule, TransformerConfig
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.checkpoint import Checkpoint
from edgeblt.export.checkpoints.stored_names import transformers_name
from edgeblt.export.checkpoints.transformers_config import parse_config

Document = dict[str, Any]


def transformers_model(checkpoint: Checkpoint) -> Any:  # a BltForCausalLM, whose own types are of no help
    """The model in float32, in memory, for evaluation. Raises EdgebltError for what transformers cannot compute."""
    document = config_document(checkpoint.config)
    named = {transformers_name(name, encoder_cross_layer=0): name for name in checkpoint.names()}
    weights = {stored: torch.from_numpy(checkpoint.tensor(name)) for stored, name in named.items()}
    model = BltForCausalLM.from_pretrained(None, config=BltConfig(**document), state_dict=weights, dtype=torch.float32)
    return model.eval()


def config_document(config: ModelConfig) -> Document:
    """The equivalent `config.json` of transformers. Raises EdgebltError if there is none."""
    patching = config.patching
    if patching.rule is Rule.BYTE:  # the other parameters have no effect
        config = dataclasses.replace(config, patching=PatchingRule(Rule.BYTE), patcher=None)
    elif patching.rule is not Rule.THRESHOLD:
        raise EdgebltError(
            f"transformers cannot patch by {patching.describe()}, only at a threshold or at every byte; compare with "
            "another checkpoint"
        )
    document = _document(config)
    if parse_config(document, "the reference").model != config:
        raise EdgebltError("transformers cannot compute a model of this configuration; compare with another checkpoint")
    return document


def _document(config: ModelConfig) -> Document:
    crosses = {"cross_attn_k": config.cross_attention_k, "hidden_size_global": config.global_.hidden_size}
    crosses |= {"vocab_size": config.vocab_size}
    decoder = crosses | {"cross_attn_all_layers": config.decoder_cross_all_layers}
    document = {
        "model_type": "blt",
        "vocab_size": config.vocab_size,
        "patch_in_forward": config.patching.rule is Rule.THRESHOLD,
        "patching_mode": "entropy",
        "patching_threshold": config.patching.threshold,
        "max_patch_length": config.patching.max_patch_length,
        "local_attention_window_len": config.encoder.window,
        "cross_attn_k": config.cross_attention_k,
        "encoder_hash_byte_group_size": list(config.hashes.group_sizes),
        "encoder_hash_byte_group_vocab": config.hashes.vocab_size,
        "encoder_hash_byte_group_nb_functions": config.hashes.function_count,
        "encoder_config": _stack(config.encoder) | crosses | {"cross_attn_all_layers": False},
        "global_config": _stack(config.global_),
        "decoder_config": _stack(config.decoder) | decoder,
        "use_cache": False,
    }
    if config.patcher:
        window = {"sliding_window": config.patcher.window, "vocab_size": config.vocab_size}
        document["patcher_config"] = _stack(config.patcher) | window
    return document


def _stack(config: TransformerConfig) -> Document:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layer_count,
        "num_attention_heads": config.head_count,
        "num_key_value_heads": config.kv_head_count,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": config.activation,
    }
