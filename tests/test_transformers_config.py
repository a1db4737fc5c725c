"""config.json against transformers' own reading of it, and the configurations that are refused."""

import copy
from typing import Any

import pytest
import torch
from transformers import BltConfig, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from checkpoint_oracle import assert_one_sentence, config_as_loaded
from edgeblt.errors import EdgebltError
from edgeblt.export.checkpoints.transformers_config import ACTIVATION_ALIASES, parse_config

SECTIONS = ["patcher_config", "encoder_config", "global_config", "decoder_config"]
READ_ALIKE: dict[str, dict[str, Any]] = {
    "nothing but the type": {},
    "sections null": dict.fromkeys(SECTIONS),
    "null kv heads": {"encoder_config": {"num_key_value_heads": None}, "patcher_config": {"num_key_value_heads": 0}},
    "intermediate from width": {
        "encoder_config": {"intermediate_size": None},
        "global_config": {"intermediate_size": 0},
        "decoder_config": {"intermediate_size": 0},
    },
    "windows null": {"local_attention_window_len": None, "patcher_config": {"sliding_window": None}},
    "windows of its own": {
        "local_attention_window_len": 9,
        "encoder_config": {"sliding_window": 3},
        "decoder_config": {"sliding_window": 4},
        "patcher_config": {"sliding_window": 5},
    },
    "theta of transformers 4": {name: {"rope_theta": 77.0} for name in SECTIONS},
    "scaling of transformers 4": {"encoder_config": {"rope_theta": 7.0, "rope_scaling": {"rope_type": "default"}}},
    "scaling before parameters": {
        "encoder_config": {
            "rope_scaling": {"type": "default", "rope_theta": 5.0},
            "rope_parameters": {"rope_theta": 6.0},
        }
    },
    "empty scaling": {"decoder_config": {"rope_scaling": {}, "rope_parameters": {"rope_theta": 6.0}}},
    "parameters without type": {"global_config": {"rope_parameters": {"rope_theta": 6.0}}},
    "parameters without theta": {"patcher_config": {"rope_parameters": {"rope_type": "default"}}},
    "patcher's activation": {"patcher_config": {"hidden_act": "gelu"}},
    "activations": {"encoder_config": {"hidden_act": "relu"}, "global_config": {"hidden_act": "gelu_pytorch_tanh"}},
    "no hash sizes": {"encoder_hash_byte_group_size": []},
    "hash sizes": {"encoder_hash_byte_group_size": [9, 2], "encoder_hash_byte_group_nb_functions": 13},
    "crosses null": {"decoder_config": {"cross_attn_all_layers": None}},
    "crosses false": {"decoder_config": {"cross_attn_all_layers": False}},
    "no patching": {"patch_in_forward": None},
    "another mode": {"patching_mode": "static", "max_patch_length": 3, "patching_threshold": None},
    "mode null": {"patching_mode": None},
    "maximum length": {"max_patch_length": 7, "patching_threshold": 0.5},
    "epsilon": {"decoder_config": {"rms_norm_eps": 0.25}},
    "projection given": {"global_config": {"encoder_cross_output_size": 5}},
    "k": {"cross_attn_k": 3, "encoder_config": {"cross_attn_k": 3}, "decoder_config": {"cross_attn_k": 3}},
    "Meta's, converted": {
        "pm_size": 0,
        "realtime_patching": True,
        "patching_threshold_add": None,
        "patching_device": "cuda",
        "monotonicity": False,
        "encoder_config": {"norm_eps": 1e-5, "pm_size": 0, "_attn_implementation": "sdpa"},
        "patcher_config": {"attn_impl": "xformers", "attn_bias_type": "local_block_causal", "norm_eps": 1e-5},
    },
}


@pytest.mark.parametrize("fields", READ_ALIKE.values(), ids=READ_ALIKE)
def test_configuration_reads_as_in_transformers(fields: dict[str, Any]) -> None:
    loaded = BltConfig(**copy.deepcopy(fields))
    assert parse_config({"model_type": "blt"} | fields, "config.json").model == config_as_loaded(loaded)


@pytest.mark.parametrize("all_layers", [True, False, None])
def test_only_the_encoders_last_cross_attention_counts(all_layers: bool | None) -> None:
    sections = {"encoder_config": {"cross_attn_all_layers": all_layers, "num_hidden_layers": 3}}
    parsed = parse_config({"model_type": "blt"} | sections, "config.json")
    assert parsed.encoder_cross_layer == (2 if all_layers else 0)


def test_every_field_that_transformers_writes_is_known() -> None:
    inherited = set(PreTrainedConfig().to_dict()) | set(GenerationConfig._get_default_generation_params())
    document = BltConfig().to_dict()
    for section in (document, *(document[name] for name in SECTIONS)):
        section.update({name: section.get(name) for name in inherited})
    assert parse_config(document, "config.json").model == config_as_loaded(BltConfig())


@pytest.mark.parametrize(("alias", "name"), ACTIVATION_ALIASES.items())
def test_activation_aliases(alias: str, name: str) -> None:
    values = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACT2FN[alias](values), ACT2FN[name](values), rtol=1e-5, atol=1e-6)
    parsed = parse_config({"model_type": "blt", "encoder_config": {"hidden_act": alias}}, "config.json")
    assert parsed.model.encoder.activation == name


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, "config.json: model_type is 'llama'; it must be 'blt'"),
    ({"model_type": None}, "config.json: model_type is None; it must be 'blt'"),
    ({"encoder_config": 3}, "config.json: encoder_config is 3; it must be a JSON object"),
    (
        {"quantization_config": {"bits": 4}},
        "config.json: quantization_config is {'bits': 4} (the weights are quantized",
    ),
    (
        {"global_config": {"quantization_config": 8}},
        "global_config.quantization_config is 8 (the weights are quantized",
    ),
    ({"decoder_config": {"attention_bias": True}}, "decoder_config.attention_bias is True (only false, or no such"),
    ({"global_config": {"per_layer_config": {"1": {}}}}, "global_config.per_layer_config is {'1': {}} (only null"),
    ({"monotonicity": True, "max_patch_length": 8}, "config.json: monotonicity is True (transformers itself starts"),
    ({"patching_threshold_add": 0.5}, "config.json: patching_threshold_add is 0.5 (transformers itself starts patches"),
    ({"encoder_config": {"cross_attn_k": 3}}, "encoder_config: cross_attn_k is 3, but the model's is 2"),
    ({"cross_attn_k": 1}, "encoder_config: cross_attn_k is 2, but the model's is 1"),
    ({"encoder_config": {"cross_attn_k": 1}, "cross_attn_k": 1}, "decoder_config: cross_attn_k is 2"),
    ({"decoder_config": {"hidden_size": 512}}, "decoder_config: hidden_size is 512, but the encoder's is 1024"),
    ({"decoder_config": {"hidden_size_global": 9}}, "hidden_size_global is 9, but global_config.hidden_size is 2048"),
    ({"encoder_config": {"hidden_size": 8.0}}, "encoder_config: hidden_size is 8.0; it must be an integer"),
    ({"encoder_config": {"hidden_size": True}}, "encoder_config: hidden_size is True; it must be an integer"),
    ({"encoder_config": {"hidden_size": 10**12}}, "encoder_config: hidden_size is 1000000000000; it must be an int"),
    ({"encoder_config": {"hidden_size": -4}}, "encoder_config: hidden_size is -4; it must be an integer between 1"),
    ({"encoder_config": {"hidden_size": None}}, "encoder_config: hidden_size is None; it must be an integer"),
    ({"global_config": {"num_hidden_layers": 10**9}}, "global_config: layer_count is 1000000000; it must be at most"),
    ({"global_config": {"num_hidden_layers": 0}}, "global_config: num_hidden_layers is 0; it must be an integer"),
    ({"global_config": {"num_attention_heads": 3, "num_key_value_heads": 2}}, "global_config: head_count 3 is not a"),
    ({"patcher_config": {"num_attention_heads": 768}}, "patcher_config: head size 1 (hidden_size 768 over 768"),
    ({"decoder_config": {"head_dim": 32}}, "decoder_config: head_dim is 32; it must be hidden_size over"),
    ({"decoder_config": {"hidden_act": "quick_gelu"}}, "decoder_config: activation 'quick_gelu' is not supported"),
    ({"decoder_config": {"hidden_act": 1}}, "decoder_config: hidden_act is 1; it must be a string"),
    ({"decoder_config": {"rms_norm_eps": float("nan")}}, "decoder_config: rms_norm_eps is nan; it must be a finite"),
    ({"decoder_config": {"rms_norm_eps": 0}}, "decoder_config: norm_epsilon is 0.0; it must be a positive"),
    ({"decoder_config": {"norm_eps": 1e-6}}, "norm_eps is 1e-06; transformers uses rms_norm_eps 1e-05 instead"),
    (
        {"encoder_config": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}},
        "encoder_config.rope_parameters.rope_type is 'yarn' (only 'default', or 'linear'",
    ),
    (
        {"encoder_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
        "encoder_config.rope_scaling.type is 'linear' (only",
    ),
    ({"encoder_config": {"rope_parameters": [1]}}, "encoder_config: rope_parameters is [1]; it must be a JSON object"),
    ({"encoder_config": {"rope_parameters": {"rope_theta": None}}}, "rope_parameters: rope_theta is None; it must be"),
    ({"encoder_config": {"rope_theta": "x"}}, "encoder_config: rope_theta is 'x'; it must be a finite number"),
    ({"encoder_config": {"partial_rotary_factor": 0.5}}, "encoder_config.partial_rotary_factor is 0.5 (only 1.0"),
    ({"encoder_config": {"cross_attn_all_layers": "yes"}}, "cross_attn_all_layers is 'yes'; it must be true or false"),
    ({"vocab_size": 256}, "config.json: vocab_size is 256; 256 bytes and the special ids need at least 260"),
    ({"vocab_size": 300}, "encoder_config: vocab_size is None; it must be the model's, 300"),
    ({"patcher_config": {"vocab_size": 300}}, "patcher_config: vocab_size is 300; it must be the model's, 260"),
    ({"local_attention_window_len": 0}, "config.json: local_attention_window_len is 0; it must be an integer"),
    ({"max_patch_length": 0}, "config.json: max_patch_length is 0; it must be an integer between 1"),
    ({"patch_size": None}, "config.json: patch_size is None; entropy patching needs a number"),
    ({"patching_threshold": None}, "config.json: patching_threshold is None; it must be a finite number"),
    ({"patching_threshold": 10**400}, "config.json: patching_threshold is 1000"),
    ({"patch_in_forward": 1}, "config.json: patch_in_forward is 1; it must be true or false"),
    ({"encoder_hash_byte_group_size": [3, 65]}, "encoder_hash_byte_group_size is [3, 65]; it must be a list of at"),
    ({"encoder_hash_byte_group_size": [0] * 10**6}, "encoder_hash_byte_group_size is [0, 0, 0"),
    ({"encoder_hash_byte_group_vocab": 0}, "encoder_hash_byte_group_vocab is 0; it must be an integer"),
]


@pytest.mark.parametrize(("fields", "fragment"), REFUSED, ids=[fragment[:40] for _, fragment in REFUSED])
def test_refused_configurations(fields: dict[str, Any], fragment: str) -> None:
    with pytest.raises(EdgebltError) as caught:
        parse_config({"model_type": "blt"} | fields, "config.json")
    assert fragment in str(caught.value)
    assert_one_sentence(str(caught.value))
