"""The encoder stage: from bytes and the n-grams that end there to byte vectors, and from those to patch vectors."""

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.config import HashConfig, ModelConfig
from edgeblt.bundle.contract import EDGEBLT, StageContract
from edgeblt.bundle.hashing import hash_coefficients
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import TransformerStack
from edgeblt.export.graphs.over_encoding import over_encoded
from edgeblt.export.graphs.pooling import Pooling
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.graphs.weights import LookupTable, Weights
from edgeblt.export.operators.hash_embedding import (
    HASHED,
    TABLE_PARTS,
    TABLES,
    TableForm,
    hash_embedding_function,
)


def encoder_graph(source: WeightSource, contract: StageContract) -> BuiltStage:
    """`encoder.onnx`: ids to byte vectors and the vectors of completed patches (see `edgeblt.bundle.contract`)."""
    graph = GraphBuilder(contract)
    stack = TransformerStack(graph, source, source.config.encoder)
    vectors = byte_vectors(stack, source.config)
    patch_vectors = Pooling(graph, stack.weights, source.config, vectors).patch_vectors()
    return graph.finish({"byte_vectors": graph.float32(vectors), "patch_vectors": patch_vectors, **stack.presents})


def byte_vectors(stack: TransformerStack, config: ModelConfig) -> ir.Value:
    """Byte vectors [T, width] of the graph's windows of ids."""
    graph = stack.graph
    hidden = stack.enter(_embeddings(graph, stack.weights, config))
    for layer in range(config.encoder.layer_count):
        hidden = stack.layer(layer, hidden)
    return stack.leave(stack.total(hidden))


def _embeddings(graph: GraphBuilder, weights: Weights, config: ModelConfig) -> ir.Value:
    """Byte embedding with the rows of its n-grams [T, width]."""
    windows, names, hashes = graph.inputs["windows"], ("encoder.embedding", "encoder.hash_tables"), config.hashes
    if isinstance(hashes, OverEncoding):
        return over_encoded(weights, "encoder", hashes, windows, config.encoder.hidden_size)
    if graph.is_for_cpu and all(map(weights.is_table, names)):
        return _embeddings_as_one(graph, [weights.table(name) for name in names], hashes, config.encoder.hidden_size)
    ids = graph.op("Gather", windows, graph.constant(hashes.context), axis=1)
    if graph.is_for_cpu:  # a spare row, as ReduceSum adds up a single row in another order
        windows = graph.with_spare_row(windows)
    hashed = weights.lookup(names[1], table_rows(graph, hashes, windows))
    total = graph.op("ReduceSum", hashed, graph.constant([1]), keepdims=0)
    if graph.is_for_cpu:
        total = graph.without_spare_row(total)
    return graph.op("Add", weights.lookup(names[0], ids), total)


def _embeddings_as_one(graph: GraphBuilder, tables: list[LookupTable], hashes: HashConfig, width: int) -> ir.Value:
    """The same as one operator."""
    forms = [TableForm(len(table.inputs)) for table in tables]
    graph.uses(HASHED, lambda opset: hash_embedding_function(opset, *forms))
    inputs = [part for table in tables for part in (*table.inputs, None, None)[: len(TABLE_PARTS)]]
    attributes = {
        f"{name}_{attribute}": value
        for name, table in zip(TABLES, tables, strict=True)
        for attribute, value in table.attributes.items()
    }
    return graph.op(
        HASHED, graph.inputs["windows"], graph.constant(hash_coefficients(hashes)), *inputs, domain=EDGEBLT,
        width=width, vocab_size=hashes.vocab_size, **attributes,
    )  # fmt: skip


def table_rows(graph: GraphBuilder, hashes: HashConfig, windows: ir.Value) -> ir.Value:
    """Rows of the fused hash tables [T, tables], int64.

    hash = sum over i of id[t - n + 1 + i] * prime ** i, wrapping in int64, modulo the vocabulary (non-negative):
    one matrix product for all tables.
    """
    hashed = graph.integer_product(windows, hash_coefficients(hashes))
    row = graph.op("Mod", hashed, graph.constant([hashes.vocab_size]))
    offsets = np.arange(hashes.table_count, dtype=np.int64) * hashes.vocab_size
    return graph.op("Add", row, graph.constant(offsets[None]))
