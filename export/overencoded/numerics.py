"""An over-encoded transformer in numpy, one whole text at once without caches: the reference, in any float type."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgeblt.bundle.config import TransformerConfig
from edgeblt.bundle.over_encoding import table_rows
from edgeblt.overencoded.config import OverEncodedConfig

Numbers = NDArray[Any]  # floats of any one type
Read = Callable[[str], NDArray[np.float32]]


def overencoded_logits(
    config: OverEncodedConfig, read: Read, ids: NDArray[np.int64], dtype: DTypeLike = np.float64
) -> Numbers:
    """Logits [T, 1 + further ids, vocab] after each of `ids` [T]: for the next id, and for those after it.

    read: a weight by its canonical name.
    dtype: type of all that is computed.
    """

    def weight(name: str) -> Numbers:
        found: Numbers = read(f"causal.{name}").astype(dtype)
        return found

    hidden = _embeddings(config, weight, ids)
    for layer in range(config.transformer.layer_count):
        hidden = _layer(config.transformer, weight, f"layers.{layer}", hidden)
    normed = _norm(config.transformer, weight("norm"), hidden)
    heads = ["head", *(f"further.{further}.head" for further in range(config.further_count))]
    return np.stack([normed @ weight(head).T for head in heads], axis=1)


def _embeddings(config: OverEncodedConfig, weight: Callable[[str], Numbers], ids: NDArray[np.int64]) -> Numbers:
    embedded, tables = weight("embedding")[ids], config.tables
    if tables is None:
        return embedded
    padded = np.concatenate([np.zeros(tables.context, np.int64), ids])
    rows = table_rows(tables, np.lib.stride_tricks.sliding_window_view(padded, tables.neighbors))
    looked_up = weight("hash_tables")[rows].reshape(len(ids), -1)
    total: Numbers = (embedded + looked_up @ weight("table_projection").T) / tables.divisor
    total[np.isin(ids, tables.excluded)] = embedded[np.isin(ids, tables.excluded)]
    return total


def _layer(config: TransformerConfig, every: Callable[[str], Numbers], prefix: str, hidden: Numbers) -> Numbers:
    def weight(part: str) -> Numbers:
        return every(f"{prefix}.{part}")

    normed = _norm(config, weight("attention_norm"), hidden)
    hidden = hidden + _attention(config, *(normed @ weight(name).T for name in ("query", "key", "value"))) @ (
        weight("output").T
    )
    normed = _norm(config, weight("mlp_norm"), hidden)
    gate = normed @ weight("gate").T
    gated: Numbers = gate / (1 + np.exp(-gate)) * (normed @ weight("up").T)
    result: Numbers = hidden + gated @ weight("down").T
    return result


def _norm(config: TransformerConfig, scale: Numbers, hidden: Numbers) -> Numbers:
    normed: Numbers = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale
    return normed


def _attention(config: TransformerConfig, query: Numbers, key: Numbers, value: Numbers) -> Numbers:
    length = len(query)
    query, key, value = (part.reshape(length, -1, config.head_dim).swapaxes(0, 1) for part in (query, key, value))
    query, key = _rotate(config, query), _rotate(config, key)
    key, value = (part.repeat(config.head_count // config.kv_head_count, axis=0) for part in (key, value))
    scores = query @ key.swapaxes(1, 2) / np.sqrt(config.head_dim)
    scores[:, np.triu(np.ones((length, length), np.bool_), 1)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    attended: Numbers = shares / shares.sum(-1, keepdims=True) @ value
    return attended.swapaxes(0, 1).reshape(length, -1)


def _rotate(config: TransformerConfig, heads: Numbers) -> Numbers:
    """RoPE on adjacent pairs of [heads, T, head_dim]."""
    frequencies = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.arange(heads.shape[1])[:, None] * frequencies
    cosines, sines = np.cos(angles).astype(heads.dtype), np.sin(angles).astype(heads.dtype)
    even, odd = heads[..., 0::2], heads[..., 1::2]
    turned = [even * cosines - odd * sines, odd * cosines + even * sines]
    return np.stack(turned, axis=-1).reshape(heads.shape)
