"""Canonical names of a MambaByte's weights, their shapes, and the names they are published under.

    mamba   embedding, layers.{i}, norm, norm_bias, head

    layers.{i}   norm, norm_bias, in_proj, convolution, convolution_bias, x_proj, dt_proj, dt_bias, a_log, skip,
                 out_proj

The biases of norms are there where these are LayerNorms.

Sources: state-spaces/mamba, `mamba_ssm/models/mixer_seq_simple.py`; jxiw/MambaByte, `src/mambabyte`, where models were
trained.
"""

import re
from collections.abc import Iterator

from edgeblt.mambabyte.config import BYTE_VALUES, MambaByteConfig

EMBEDDING, HEAD = "mamba.embedding", "mamba.head"
_PUBLISHED = {
    EMBEDDING: "backbone.embedding.weight",
    HEAD: "lm_head.weight",
    "mamba.norm": "backbone.norm_f.weight",
    "mamba.norm_bias": "backbone.norm_f.bias",
}
_LAYER = {
    "norm": "norm.weight",
    "norm_bias": "norm.bias",
    "in_proj": "mixer.in_proj.weight",
    "convolution": "mixer.conv1d.weight",
    "convolution_bias": "mixer.conv1d.bias",
    "x_proj": "mixer.x_proj.weight",
    "dt_proj": "mixer.dt_proj.weight",
    "dt_bias": "mixer.dt_proj.bias",
    "a_log": "mixer.A_log",
    "skip": "mixer.D",
    "out_proj": "mixer.out_proj.weight",
}
_IN_TRAINING = {
    "backbone.embedding.": "mambabyte.token_embedding.",
    "backbone.layers.": "mambabyte.layers.",
    "backbone.norm_f.": "mambabyte.final_norm.",
}  # prefixes; the head has one name
_OF_LAYER = re.compile(r"mamba\.layers\.(\d+)\.(\w+)")


def published_name(name: str) -> str:
    """The name in mamba-ssm's checkpoints."""
    found = _OF_LAYER.fullmatch(name)
    return f"backbone.layers.{found[1]}.{_LAYER[found[2]]}" if found else _PUBLISHED[name]


def training_name(name: str) -> str:
    """The name in the files that MambaByte's training repository saves."""
    published = published_name(name)
    for prefix, in_training in _IN_TRAINING.items():
        if published.startswith(prefix):
            return in_training + published.removeprefix(prefix)
    return published


def mambabyte_shapes(config: MambaByteConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name to shape of every tensor that a model of this configuration has, in order."""
    return dict(_shapes(config))


def _shapes(config: MambaByteConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, channels, states = config.hidden_size, config.channel_count, config.state_size
    yield EMBEDDING, (BYTE_VALUES, width)
    for layer in range(config.layer_count):
        prefix = f"mamba.layers.{layer}"
        yield from _norm(f"{prefix}.norm", config)
        yield f"{prefix}.in_proj", (2 * channels, width)
        yield f"{prefix}.convolution", (channels, 1, config.kernel_size)
        yield f"{prefix}.convolution_bias", (channels,)
        yield f"{prefix}.x_proj", (config.selection_size, channels)
        yield f"{prefix}.dt_proj", (channels, config.step_rank)
        yield f"{prefix}.dt_bias", (channels,)
        yield f"{prefix}.a_log", (channels, states)
        yield f"{prefix}.skip", (channels,)
        yield f"{prefix}.out_proj", (width, channels)
    yield from _norm("mamba.norm", config)
    yield HEAD, (BYTE_VALUES, width)


def _norm(name: str, config: MambaByteConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, (config.hidden_size,)
    if config.norm == "layer":
        yield f"{name}_bias", (config.hidden_size,)
