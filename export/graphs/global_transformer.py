"""The global stage: one position a patch, full causal attention."""

import onnx_ir as ir

from edgeblt.bundle.contract import StageContract
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import TransformerStack
from edgeblt.export.graphs.weight_source import WeightSource


def global_graph(source: WeightSource, contract: StageContract) -> BuiltStage:
    """`global.onnx`: patch vectors to latents (see `edgeblt.bundle.contract`); no norm follows the last layer."""
    graph = GraphBuilder(contract)
    return graph.finish(global_outputs(graph, source))


def global_outputs(graph: GraphBuilder, source: WeightSource) -> dict[str, ir.Value]:
    """The stage's outputs by name."""
    config = source.config
    stack = TransformerStack(graph, source, config.global_)
    value = graph.computed(graph.inputs["patch_vectors"])
    if config.has_global_projection:
        value = stack.weights.linear(value, ["global.projection"])
    hidden = stack.enter(value)
    for layer in range(config.global_.layer_count):
        hidden = stack.layer(layer, hidden)
    return {"latents": stack.leave(graph.float32(stack.total(hidden))), **stack.presents}
