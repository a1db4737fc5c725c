"""The one stage of an over-encoded transformer: windows of ids to next-byte logits."""

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.contract import FURTHER, StageContract
from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import TransformerStack
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.overencoded.names import EMBEDDING, HEAD, PROJECTION, TABLES
from edgeblt.overencoded.config import OverEncodedConfig


def causal_graph(source: WeightSource, contract: StageContract) -> BuiltStage:
    """`causal.onnx` (see `edgeblt.overencoded.contract`)."""
    config = source.config
    assert isinstance(config, OverEncodedConfig)
    graph = GraphBuilder(contract)
    stack = TransformerStack(graph, source, config.transformer)
    hidden = stack.enter(_embeddings(stack, config))
    for layer in range(config.transformer.layer_count):
        hidden = stack.layer(layer, hidden)
    normed, _ = stack.norm(hidden, "causal.norm")
    outputs = {"logits": stack.weights.linear(normed, [HEAD])}
    if config.further_count:
        heads = [f"causal.further.{further}.head" for further in range(config.further_count)]
        outputs[FURTHER] = stack.weights.linear(normed, heads)
    return graph.finish({**outputs, **stack.presents})


def _embeddings(stack: TransformerStack, config: OverEncodedConfig) -> ir.Value:
    """The embedding of each id, with the projected rows of its n-grams: [T, width]."""
    graph, weights, tables = stack.graph, stack.weights, config.tables
    windows = graph.inputs["windows"]
    ids = graph.op("Gather", windows, graph.constant(config.context), axis=1)
    embedded = weights.lookup(EMBEDDING, ids)
    if tables is None:
        return embedded
    rows = weights.lookup(TABLES, table_rows(graph, tables, windows))
    rows = graph.op("Reshape", rows, graph.constant([-1, config.transformer.hidden_size]))
    total = graph.op("Add", embedded, weights.linear(rows, [PROJECTION]))
    total = graph.op("Mul", total, graph.number(1 / tables.divisor))
    if not tables.excluded:
        return total
    excluded = np.isin(np.arange(tables.vocab_size), tables.excluded)
    is_excluded = graph.op("Gather", graph.constant(excluded), ids)
    return graph.op("Where", graph.op("Unsqueeze", is_excluded, graph.constant([1])), embedded, total)


def table_rows(graph: GraphBuilder, tables: OverEncoding, windows: ir.Value) -> ir.Value:
    """Rows of the fused n-gram tables [T, tables], int64: `edgeblt.bundle.over_encoding.table_rows` in a graph.

    The last id of a window never hides itself, so it is left out of the sum of cuts and joined again.
    """
    ends = (graph.constant([number]) for number in (0, tables.context, 1))
    before = graph.op("Slice", windows, *ends)
    from_here_on = np.tril(np.ones((tables.context, tables.context), np.int64))  # sums of each id and those after it
    hidden = graph.op("MatMul", graph.op("Gather", graph.constant(tables.cuts), before), graph.constant(from_here_on))
    zero = graph.constant([0])
    seen = graph.op("Where", graph.op("Equal", hidden, zero), before, zero)
    own = graph.op("Gather", windows, graph.constant([tables.context]), axis=1)
    sums = graph.op("MatMul", graph.op("Concat", seen, own, axis=1), graph.constant(tables.coefficients))
    rows = graph.op("Mod", sums, graph.constant(list(tables.rows)))
    return graph.op("Add", rows, graph.constant(tables.first_rows))
