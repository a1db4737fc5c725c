"""Weights of a portable graph beside it, or in its own file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeblt.errors import EdgebltError
from edgeblt.export.graphs.graph import BuiltStage

LARGEST_FILE = (1 << 31) - (1 << 22)  # bytes of weights; protobuf allows 2 GiB with the nodes


def check_portable_size(stage: BuiltStage, embed: bool) -> None:
    """Raises EdgebltError where the weights to embed would make the graph larger than an ONNX file can be."""
    size = sum(slot.size for slot in stage.slots.values())
    if embed and size > LARGEST_FILE:
        raise EdgebltError(
            f"the weights take {size:,} bytes, but one ONNX file holds at most 2 GB; export without --embed, which "
            "writes them beside the graph"
        )


def save_embedded(stage: BuiltStage, graph: Path) -> None:
    """Writes the model with its weights, from the file of weights beside `graph`, which is removed."""
    weights = graph.with_suffix(".weights")
    content = np.fromfile(weights, np.uint8)
    for value in _initializers(stage.model.graph):
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            slot = stage.slots[str(value.name)]
            stored = content[slot.offset : slot.offset + slot.size].view(slot.dtype).reshape(slot.shape)
            if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
                value.const_value = ir.PackedTensor(stored, tensor.dtype, shape=tensor.shape, name=tensor.name)
            else:
                value.const_value = ir.Tensor(stored, name=tensor.name)
    ir.save(stage.model, graph)
    weights.unlink()


def _initializers(graph: ir.Graph) -> Iterator[ir.Value]:
    """The initializers of a graph, and of the branches in it."""
    yield from graph.initializers.values()
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _initializers(attribute.as_graph())
