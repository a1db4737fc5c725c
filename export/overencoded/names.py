"""Canonical names of an over-encoded transformer's weights, their shapes, and the names they are stored under.

    causal   embedding, hash_tables, table_projection, layers.{i}, norm, head, further.{j}.head

    layers.{i}   attention_norm, query, key, value, output, mlp_norm, gate, up, down

`hash_tables` are all n-gram tables, one after another, and `table_projection` their projections side by side.
"""

import re
from collections.abc import Iterator

from edgeblt.export.checkpoints.ngram_tables.weights import table_names
from edgeblt.export.checkpoints.stored_names import TRANSFORMERS_PARTS
from edgeblt.overencoded.config import OverEncodedConfig

EMBEDDING, TABLES, PROJECTION, HEAD = "causal.embedding", "causal.hash_tables", "causal.table_projection", "causal.head"
_STORED = {EMBEDDING: "model.embed_tokens.weight", HEAD: "lm_head.weight", "causal.norm": "model.norm.weight"}
_OF_LAYER = re.compile(r"causal\.layers\.(\d+)\.(\w+)")
_OF_FURTHER = re.compile(r"causal\.further\.(\d+)\.head")


def stored_names(name: str, table_count: int) -> list[str]:
    """Names of the tensors that a weight consists of: one, but for tables and their projections."""
    if name in (TABLES, PROJECTION):
        return table_names(name, table_count)
    if found := _OF_LAYER.fullmatch(name):
        return [f"model.layers.{found[1]}.{TRANSFORMERS_PARTS[found[2]]}.weight"]
    if found := _OF_FURTHER.fullmatch(name):
        return [f"model.future_heads.{found[1]}.weight"]
    return [_STORED[name]]


def overencoded_shapes(config: OverEncodedConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name to shape of every tensor that a model of this configuration has, in order."""
    return dict(_shapes(config))


def _shapes(config: OverEncodedConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    stack, vocab = config.transformer, config.vocab_size
    width = stack.hidden_size
    key_width, inner = stack.kv_head_count * stack.head_dim, stack.intermediate_size
    yield EMBEDDING, (vocab, width)
    if config.tables:
        yield TABLES, (config.tables.row_count, config.table_width)
        yield PROJECTION, (width, width)
    for layer in range(stack.layer_count):
        prefix = f"causal.layers.{layer}"
        yield f"{prefix}.attention_norm", (width,)
        for name, rows in (("query", width), ("key", key_width), ("value", key_width), ("output", width)):
            yield f"{prefix}.{name}", (rows, width)
        yield f"{prefix}.mlp_norm", (width,)
        yield f"{prefix}.gate", (inner, width)
        yield f"{prefix}.up", (inner, width)
        yield f"{prefix}.down", (width, inner)
    yield "causal.norm", (width,)
    yield HEAD, (vocab, width)
    for further in range(config.further_count):
        yield f"causal.further.{further}.head", (vocab, width)
