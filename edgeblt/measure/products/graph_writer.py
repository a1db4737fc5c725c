"""Small graphs as ONNX files, written without the onnx package, which a device lacks; the inverse of `parse_model`."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeblt.bundle.examination.onnx_graph import (
    FLOAT,
    FLOAT16,
    INT_ATTRIBUTE,
    UINT8,
    Attribute,
    Node,
    Value,
)
from edgeblt.bundle.examination.protobuf import field, varint

IR_VERSION = 10
INT8 = 3  # TensorProto.DataType
_TYPES = {np.dtype(kind): number for kind, number in (("f4", FLOAT), ("f2", FLOAT16), ("u1", UINT8), ("i1", INT8))}


def write_model(
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    initializers: Mapping[str, NDArray[np.generic]],
    opsets: Mapping[str, int],
) -> bytes:
    """Content of an ONNX file.

    nodes: in the order of computation; attributes are integers that are not negative.
    initializers: float32, float16, uint8 or int8, by name.
    opsets: version by domain.
    """
    graph = (
        b"".join(field(1, _node(node)) for node in nodes)
        + field(2, b"graph")
        + b"".join(field(5, _tensor(name, array)) for name, array in initializers.items())
        + b"".join(field(11, _value(value)) for value in inputs)
        + b"".join(field(12, _value(value)) for value in outputs)
    )
    versions = (field(1, domain.encode()) + _number(2, version) for domain, version in opsets.items())
    return _number(1, IR_VERSION) + field(7, graph) + b"".join(field(8, version) for version in versions)


def _node(node: Node) -> bytes:
    return (
        b"".join(field(1, name.encode()) for name in node.inputs)
        + b"".join(field(2, name.encode()) for name in node.outputs)
        + field(4, node.op_type.encode())
        + b"".join(field(5, _attribute(attribute)) for attribute in node.attributes)
        + field(7, node.domain.encode())
    )


def _attribute(attribute: Attribute) -> bytes:
    assert attribute.type == INT_ATTRIBUTE, attribute
    return field(1, attribute.name.encode()) + _number(3, attribute.value) + _number(20, attribute.type)


def _tensor(name: str, array: NDArray[np.generic]) -> bytes:
    sizes = b"".join(_number(1, size) for size in array.shape)
    return sizes + _number(2, _TYPES[array.dtype]) + field(8, name.encode()) + field(9, array.tobytes())


def _value(value: Value) -> bytes:
    sizes = b"".join(field(1, _dimension(size)) for size in value.dims or ())
    shape = b"" if value.dims is None else field(2, sizes)
    return field(1, value.name.encode()) + field(2, field(1, _number(1, value.type) + shape))


def _dimension(size: int | str) -> bytes:
    return field(2, size.encode()) if isinstance(size, str) else _number(1, size)


def _number(number: int, value: object) -> bytes:
    """Encoding of a field that holds an integer."""
    assert isinstance(value, int) and value >= 0, value
    return varint(number << 3) + varint(value)
