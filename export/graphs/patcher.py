"""The patcher stage: a byte language model whose entropies determine where patches start."""

from collections.abc import Mapping
from functools import partial

import onnx_ir as ir

from edgeblt.bundle.config import TransformerConfig
from edgeblt.bundle.contract import EDGEBLT, PATCHING_INPUTS, SEQUENCE_INPUTS, StageContract
from edgeblt.export.graphs.graph import BuiltStage, GraphBuilder
from edgeblt.export.graphs.layers import TransformerStack
from edgeblt.export.graphs.weight_source import WeightSource
from edgeblt.export.operators.entropy_patch import OP_TYPE, entropy_patch_function, setting_defaults


def patcher_graph(source: WeightSource, contract: StageContract) -> BuiltStage:
    """`patcher.onnx`: ids to next-byte logits, entropies and patch starts (see `edgeblt.bundle.contract`)."""
    graph = GraphBuilder(contract)
    settings = {
        name: graph.setting(name, default) for name, default in setting_defaults(source.config.patching).items()
    }
    return graph.finish(patcher_outputs(graph, source, settings))


def patcher_outputs(graph: GraphBuilder, source: WeightSource, settings: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """The stage's outputs by name; `settings` are the rule's (`PATCHING_SETTINGS`)."""
    config = source.config
    outputs: dict[str, ir.Value] = {}
    if config.patcher is None:  # the rule reads no entropies: one logit a byte, entropy 0, stands for them
        shape = graph.op("Concat", graph.op("Shape", graph.inputs["ids"]), graph.constant([1]), axis=0)
        logits = graph.op("ConstantOfShape", shape)
    else:
        stack = TransformerStack(graph, source, config.patcher)
        logits = outputs["logits"] = _next_byte_logits(graph, stack, config.patcher)
        outputs |= stack.presents
    inputs = {
        "logits": logits,
        "ids": graph.inputs["ids"],
        "position": graph.inputs["position"],
        "state": graph.inputs["state"],
        **settings,
    }
    entropies, patch_starts, states = graph.ops(
        OP_TYPE,
        *(inputs[spec.name] for spec in PATCHING_INPUTS),
        *(graph.inputs[spec.name] for spec in SEQUENCE_INPUTS if graph.is_for_cpu),
        outputs=3,
        domain=EDGEBLT,
        rule=int(config.patching.rule),
    )
    outputs |= {"entropies": entropies, "patch_starts": patch_starts, "states": states}
    graph.uses(OP_TYPE, partial(entropy_patch_function, target=graph.contract.target))
    return outputs


def _next_byte_logits(graph: GraphBuilder, stack: TransformerStack, config: TransformerConfig) -> ir.Value:
    hidden = stack.enter(stack.weights.lookup("patcher.embedding", graph.inputs["ids"]))
    for layer in range(config.layer_count):
        hidden = stack.layer(layer, hidden)
    normed, _ = stack.norm(hidden, "patcher.norm")
    return stack.leave(graph.float32(stack.weights.linear(normed, ["patcher.head"])))
