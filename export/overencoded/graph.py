"""The one stage of an over-encoded transformer: windows of ids to next-byte logits."""

import onnx_ir as ir

from edgeblt.bundle.contract import FURTHER, StageContract
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import TransformerStack
from edgeblt.export.graphs.over_encoding import over_encoded
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.overencoded.names import EMBEDDING, HEAD
from edgeblt.overencoded.config import OverEncodedConfig
from edgeblt.overencoded.contract import STAGE


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
    windows = stack.graph.inputs["windows"]
    if config.tables is None:
        return stack.weights.lookup(EMBEDDING, stack.graph.op("Gather", windows, stack.graph.constant(0), axis=1))
    return over_encoded(stack.weights, STAGE, config.tables, windows, config.transformer.hidden_size)
