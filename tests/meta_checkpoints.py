"""Checkpoints in Meta's form, written from transformers' models: transformers' own conversion, backwards.

Source of what is written: facebookresearch/blt (`ByteLatentTransformerArgs`, `LMTransformerArgs`, `TrainArgs` and the
names of `state_dict()`), and `convert_blt_weights_to_hf.py` of transformers. Shares nothing with the reader.
"""

import copy
import json
import random
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import BltConfig

import tiny_models

Args = dict[str, Any]
Entropy = Literal["params", "config", "none"]  # consolidated.pth and params.json, or as save_pretrained writes, or none
LOADER_WINDOW = 512  # window of an entropy model with a params.json

# Every field of Meta's arguments at its default.
# fmt: off
BASE_ARGS: Args = {
    "dim": 512, "n_layers": 8, "head_dim": None, "n_heads": None, "n_kv_heads": None, "ffn_dim_multiplier": None,
    "multiple_of": 256, "norm_eps": 1e-5, "rope_theta": 10000.0, "rope_use_fp32_in_outer_product": False,
    "init_base_std": None, "init_std_factor": "disabled", "max_seqlen": 1024, "attn_impl": "sdpa",
    "attn_bias_type": None, "eos_id": 2,
}
MODEL_ARGS: Args = BASE_ARGS | {
    "seed": 42, "vocab_size": -1, "n_heads": 8, "weight_tying": False, "patch_in_forward": False, "dim_token": None,
    "dim_global": 512, "dim_local_decoder": 512, "dim_local_encoder": 512, "n_layers_global": 8,
    "n_layers_local_decoder": 8, "n_layers_local_encoder": 8, "patch_size": None, "patching_mode": None,
    "patching_threshold": None, "patching_threshold_add": None, "monotonicity": False, "patching_batch_size": 1,
    "patching_device": "cuda", "max_patch_length": None, "tie_local_encoder_decoder_logits": False,
    "use_local_encoder_transformer": False, "encoder_lm_loss": False, "max_encoder_seq_length": None,
    "pad_to_max_length": False, "encoder_enable_byte_ngrams": False, "encoder_enable_byte_group_hash": False,
    "ngram_vocab_sizes": None, "cross_attn_encoder": False, "cross_attn_decoder": False,
    "cross_attn_window_encoder": None, "cross_attn_window_decoder": None, "cross_attn_k": None,
    "cross_attn_nheads": None, "cross_attn_all_layers_decoder": False, "cross_attn_all_layers_encoder": False,
    "cross_attn_use_flex_attention": True, "cross_attn_init_by_pooling": False, "encoder_hash_byte_group_size": None,
    "encoder_hash_byte_group_vocab": 30000, "encoder_hash_byte_group_nb_functions": 3, "log_patch_lengths": False,
    "non_linearity": "swiglu", "use_rope": True, "recompute_fc1_out": False, "recompute_fc3_out": False,
    "recompute_attn": True, "custom_bwd": False, "layer_ckpt": "all", "init_use_gaussian": True,
    "init_use_depth": "current", "attn_bias_type": "causal", "alpha_depth": "disabled", "max_length": 2048,
    "norm_affine": True, "pre_norm": True, "norm_type": "rmsnorm", "ffn_dim_multiplier": 1.0, "dropout": 0,
    "output_size": -1, "architecture": "vanilla", "share_encoder_decoder_emb": True,
    "global_local_decoder_residual_layer": None, "tokenize_with_bpe_delimiter": False, "patching_thresholds_str": None,
    "tie_local_encoder_decoder": False, "encoder_preds_low_entropy_toks": None, "encoder_preds_random_toks": None,
    "dim_token_emb": None, "dim_patch_emb": None, "encoder_ngram_table_dir": None, "encoder_ngram_to_size_str": None,
    "entropy_model_checkpoint_dir": None, "entropy_model_is_ngram_model": False, "downsampling_by_pooling": None,
    "n_heads_global": 8, "n_heads_local_decoder": 8, "n_heads_local_encoder": 8, "n_kv_heads_global": None,
    "conv_kernel_size": None, "local_attention_window_len": None, "sequence_parallel": False, "loss_parallel": False,
    "fuse_sequence_parallel": False, "use_fsdp": True, "attn_to_keep": "all", "pm_size": 0,
    "full_logging_n_layers": 4,
}
ENTROPY_ARGS: Args = BASE_ARGS | {
    "seed": 42, "vocab_size": -1, "weight_tying": False, "sliding_window": None,
}
PATCHER_ARGS: Args = {
    "patching_mode": "entropy", "patching_device": "cuda", "entropy_model_checkpoint_dir": None,
    "realtime_patching": False, "threshold": 1.335442066192627, "threshold_add": None, "max_patch_length": None,
    "patch_size": 4.5, "patching_batch_size": 1, "device": "cuda", "monotonicity": False, "log_time": False,
}
# fmt: on
RENAMED = {  # part of a name in transformers' form -> in Meta's, applied in this order
    "model.": "",
    "self_attn": "attention",
    "mlp": "feed_forward",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "q_norm": "cross_attn_norm_q",
    "k_norm": "cross_attn_norm_kv",
    "gate_proj": "w1",
    "down_proj": "w2",
    "up_proj": "w3",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "lm_head": "output",
}


def expressible_config(seed: int, entropy: Entropy = "config") -> tuple[BltConfig, Args]:
    """`tiny_models.random_config(seed)`, changed where Meta's form cannot say it, and how its MLPs' widths came about.

    There the local stacks share width and heads, the three stacks share their norms' epsilon and rotary base, and the
    width of an MLP follows from that of its stack; with "params" the entropy model is one of Meta's defaults.
    """
    config, rng = tiny_models.random_config(seed), random.Random(seed)
    shared = {
        "rms_norm_eps": config.encoder_config.rms_norm_eps,
        "rope_parameters": config.encoder_config.rope_parameters,
        "hidden_act": "silu",
    }
    multiplier, multiple = rng.choice([1.0, 1.0, 0.6, 1.3]), rng.choice([1, 8, 12])
    heads = config.encoder_config.num_attention_heads
    width = config.encoder_config.hidden_size // heads * heads
    local = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": heads}
    local |= shared | {"intermediate_size": intermediate_size(width, multiplier, multiple)}
    global_ = _global_stack(config, width, rng)
    global_ |= shared | {"intermediate_size": intermediate_size(global_["hidden_size"], multiplier, multiple)}
    crosses = {"cross_attn_k": config.cross_attn_k, "hidden_size_global": global_["hidden_size"]}
    layers, decoder = config.encoder_config.num_hidden_layers, config.decoder_config
    result = BltConfig(
        patching_threshold=5.0,
        patch_in_forward=config.patch_in_forward,
        max_patch_length=config.max_patch_length,
        local_attention_window_len=config.local_attention_window_len,
        cross_attn_k=config.cross_attn_k,
        encoder_hash_byte_group_size=config.encoder_hash_byte_group_size,
        encoder_hash_byte_group_vocab=config.encoder_hash_byte_group_vocab,
        encoder_hash_byte_group_nb_functions=config.encoder_hash_byte_group_nb_functions,
        patcher_config=_patcher(config.patcher_config, entropy),
        encoder_config=local | crosses | {"num_hidden_layers": layers, "cross_attn_all_layers": layers == 1},
        decoder_config=local | crosses | _depth(decoder) | {"cross_attn_all_layers": decoder.cross_attn_all_layers},
        global_config=global_ | _depth(config.global_config),
        use_cache=False,
    )
    return result, {"ffn_dim_multiplier": multiplier, "multiple_of": multiple}


def intermediate_size(width: int, multiplier: float | None, multiple: int) -> int:
    """Two thirds of four times the width, scaled, rounded up to a multiple."""
    size = int(8 * width / 3)
    size = size if multiplier is None else int(size * multiplier)
    return -(-size // multiple) * multiple


def _depth(stack: Any) -> dict[str, int]:
    return {"num_hidden_layers": stack.num_hidden_layers}


def _global_stack(config: Any, width: int, rng: random.Random) -> dict[str, int]:
    stack, patch = config.global_config, config.cross_attn_k * width
    heads = [heads for heads in range(1, 6) if patch % heads == 0 and patch // heads % 2 == 0]
    if rng.random() < 0.5 and config.cross_attn_k > 1 and heads:  # no projection
        return {"hidden_size": patch, "num_attention_heads": heads[-1], "num_key_value_heads": 1}
    count = stack.num_attention_heads
    own = stack.hidden_size // count * count
    own += 2 * count if own == width else 0  # there Meta's decoder has no projection
    kv_heads = stack.num_key_value_heads
    return {"hidden_size": own, "num_attention_heads": count, "num_key_value_heads": kv_heads}


def _patcher(patcher: Any, entropy: Entropy) -> Args:
    heads = patcher.num_attention_heads
    width, loaded = patcher.hidden_size // heads * heads, entropy == "params"
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if loaded else patcher.num_key_value_heads,
        "num_hidden_layers": patcher.num_hidden_layers,
        "intermediate_size": intermediate_size(width, None, 256 if loaded else 4),
        "rms_norm_eps": 1e-5 if loaded else patcher.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0} if loaded else patcher.rope_parameters,
        "sliding_window": LOADER_WINDOW if loaded else patcher.sliding_window,
        "hidden_act": "silu",
    }


def save_meta_form(
    model: Any,
    path: Path,
    args: Args,
    dtype: torch.dtype = torch.float32,
    entropy: Entropy = "config",
    patcher_args: Args | None = None,
) -> Path:
    """Write a model of an expressible configuration.

    `args` are for its `config.json`, with what `expressible_config` gave; `patcher_args` change the rule, which is the
    model's own.
    """
    main, patcher = _split(model.state_dict(), model.config, dtype)
    path.mkdir(parents=True)
    args = model_args(model.config) | args
    save_file(main, path / "model.safetensors")
    write_json(path / "config.json", {"args": args})
    write_json(path / "train_args.json", training_args(model.config, args, patcher_args or {}))
    if entropy != "none" and patcher:
        save_entropy_model(model.config, patcher, path / "entropy_model", entropy)
    return path


def save_patcher(model: Any, path: Path, entropy: Entropy = "config", dtype: torch.dtype = torch.float32) -> Path:
    """Write the model's entropy model alone, as `facebook/blt-entropy` is."""
    save_entropy_model(model.config, _split(model.state_dict(), model.config, dtype)[1], path, entropy)
    return path


def save_entropy_model(config: Any, weights: dict[str, torch.Tensor], path: Path, entropy: Entropy) -> None:
    path.mkdir(parents=True)
    args = entropy_args(config.patcher_config, config.vocab_size)
    if entropy == "config":
        save_file(weights, path / "model.safetensors")
        write_json(path / "config.json", {"args": args})
    else:
        torch.save({"model": weights}, path / "consolidated.pth")
        data = {"add_patches": False, "patcher_args": PATCHER_ARGS | {"patching_mode": "byte"}}
        write_json(path / "params.json", {"train_entropy_model": True, "entropy_model": args, "data": data})


def write_json(file: Path, document: object) -> None:
    file.write_text(json.dumps(document, indent=2))


def _split(
    state: dict[str, torch.Tensor], config: Any, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The main model's tensors and the entropy model's, by Meta's names."""
    main: dict[str, torch.Tensor] = {}
    patcher: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        values = tensor.detach().to(dtype).clone()
        if "encoder_hash_tok_embedding" in name:
            rows = config.encoder_hash_byte_group_vocab
            main |= {
                f"encoder_hash_tok_embedding.{i}.weight": t.clone() for i, t in enumerate(torch.split(values, rows))
            }
        elif name == "lm_head.weight":
            main["local_decoder.output.weight"] = values
        else:
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            stage, _, rest = name.partition(".")
            target = patcher if stage == "patcher" else main
            target[rest if stage == "patcher" else name] = values
    return main, patcher


def model_args(config: Any) -> Args:
    """The main model's arguments as `save_pretrained` writes them."""
    encoder, decoder, global_ = config.encoder_config, config.decoder_config, config.global_config
    window = config.local_attention_window_len
    return copy.deepcopy(MODEL_ARGS) | {
        "vocab_size": config.vocab_size,
        "dim_token": encoder.hidden_size,
        "dim_global": global_.hidden_size,
        "dim_local_encoder": encoder.hidden_size,
        "dim_local_decoder": decoder.hidden_size,
        "n_layers_global": global_.num_hidden_layers,
        "n_layers_local_encoder": encoder.num_hidden_layers,
        "n_layers_local_decoder": decoder.num_hidden_layers,
        "n_heads_global": global_.num_attention_heads,
        "n_heads_local_encoder": encoder.num_attention_heads,
        "n_heads_local_decoder": decoder.num_attention_heads,
        "n_kv_heads_global": global_.num_key_value_heads,
        "norm_eps": encoder.rms_norm_eps,
        "rope_theta": encoder.rope_parameters["rope_theta"],
        "patch_size": 4.5,
        "patching_mode": "entropy" if config.patch_in_forward else "byte",
        "use_local_encoder_transformer": True,
        "cross_attn_encoder": True,
        "cross_attn_decoder": True,
        "cross_attn_k": config.cross_attn_k,
        "cross_attn_nheads": encoder.num_attention_heads,
        "cross_attn_all_layers_encoder": encoder.cross_attn_all_layers,
        "cross_attn_all_layers_decoder": decoder.cross_attn_all_layers,
        "cross_attn_init_by_pooling": True,
        "downsampling_by_pooling": "max",
        "encoder_hash_byte_group_size": config.encoder_hash_byte_group_size,
        "encoder_hash_byte_group_vocab": config.encoder_hash_byte_group_vocab,
        "encoder_hash_byte_group_nb_functions": config.encoder_hash_byte_group_nb_functions,
        "attn_impl": "xformers" if window is not None else "flex_attention",
        "attn_bias_type": "block_causal",
        "local_attention_window_len": window,
    }


def entropy_args(patcher: Any, vocab_size: int) -> Args:
    windowed = patcher.sliding_window is not None
    return ENTROPY_ARGS | {
        "dim": patcher.hidden_size,
        "n_layers": patcher.num_hidden_layers,
        "n_heads": patcher.num_attention_heads,
        "n_kv_heads": patcher.num_key_value_heads,
        "multiple_of": 256 if patcher.intermediate_size % 256 == 0 else 4,
        "norm_eps": patcher.rms_norm_eps,
        "rope_theta": patcher.rope_parameters["rope_theta"],
        "vocab_size": vocab_size,
        "attn_impl": "xformers" if windowed else "sdpa",
        "attn_bias_type": "local_block_causal" if windowed else "causal",
        "sliding_window": patcher.sliding_window,
    }


def training_args(config: Any, args: Args, patcher_args: Args) -> Args:
    rule = {"threshold": config.patching_threshold, "max_patch_length": config.max_patch_length}
    if not config.patch_in_forward:
        rule = {"patching_mode": "byte"}
    tokenizer = {"name": "blt", "init_kwargs": {"bpe_tokenizer_path": "/nowhere/tokenizer.model"}}
    data = {"seq_len": 4096, "tokenizer_args": tokenizer, "patcher_args": PATCHER_ARGS | rule | patcher_args}
    distributed = {"model_dtype": "bf16"}
    return {"name": "tiny", "steps": 10, "data": data, "model": args, "entropy_model": None, "distributed": distributed}
