"""Input of the over-encoding family in a graph: embeddings with the projected rows of n-gram tables."""

import numpy as np
import onnx_ir as ir

from edgeblt.bundle.over_encoding import OverEncoding
from edgeblt.export.graphs.graph import GraphBuilder
from edgeblt.export.graphs.weights import Weights


def over_encoded(weights: Weights, stage: str, tables: OverEncoding, windows: ir.Value, width: int) -> ir.Value:
    """The embedding of each id, with the projected rows of its n-grams: [T, width].

    stage: prefix of the weights' names.
    windows: [T, N], each id after those before it, zeros before the text.
    """
    graph = weights.graph
    ids = graph.op("Gather", windows, graph.constant(tables.context), axis=1)
    embedded = weights.lookup(f"{stage}.embedding", ids)
    rows = weights.lookup(f"{stage}.hash_tables", over_encoding_rows(graph, tables, windows))
    rows = graph.op("Reshape", rows, graph.constant([-1, width]))
    total = graph.op("Add", embedded, weights.linear(rows, [f"{stage}.table_projection"]))
    total = graph.op("Mul", total, graph.number(1 / tables.divisor))
    if not tables.excluded:
        return total
    excluded = np.isin(np.arange(tables.vocab_size), tables.excluded)
    is_excluded = graph.op("Gather", graph.constant(excluded), ids)
    return graph.op("Where", graph.op("Unsqueeze", is_excluded, graph.constant([1])), embedded, total)


def over_encoding_rows(graph: GraphBuilder, tables: OverEncoding, windows: ir.Value) -> ir.Value:
    """Rows of the fused n-gram tables [T, tables], int64: `edgeblt.bundle.over_encoding.table_rows` in a graph.

    The last id of a window never hides itself, so it is left out of the sum of cuts and joined again.
    """
    ends = (graph.constant([number]) for number in (0, tables.context, 1))
    before = graph.op("Slice", windows, *ends)
    from_here_on = np.tril(np.ones((tables.context, tables.context), np.int64))  # sums of each id and those after it
    hidden = graph.integer_product(graph.op("Gather", graph.constant(tables.cuts), before), from_here_on)
    zero = graph.constant([0])
    seen = graph.op("Where", graph.op("Equal", hidden, zero), before, zero)
    own = graph.op("Gather", windows, graph.constant([tables.context]), axis=1)
    sums = graph.integer_product(graph.op("Concat", seen, own, axis=1), tables.coefficients)
    rows = graph.op("Mod", sums, graph.constant(list(tables.rows)))
    return graph.op("Add", rows, graph.constant(tables.first_rows))
