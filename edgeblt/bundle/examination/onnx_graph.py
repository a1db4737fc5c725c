"""An ONNX file as small frozen dataclasses, without the onnx package.

The tables hold the fields that edgeblt's exporter writes and those ONNX Runtime adds when it saves a graph; a file with
others, or with one of them twice, is refused (`protobuf`). Numbers and names are onnx.proto's.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgeblt.bundle.examination.protobuf import Field, Kind, MalformedError, Table, decode, raw_fields

FLOAT, UINT8, INT8, INT32, INT64, BOOL, FLOAT16, UINT4, INT4 = 1, 2, 3, 6, 7, 9, 10, 21, 22  # TensorProto.DataType
ELEMENT_BITS = {FLOAT: 32, UINT8: 8, INT8: 8, INT32: 32, INT64: 64, BOOL: 8, FLOAT16: 16, UINT4: 4, INT4: 4}
EXTERNAL = 1  # TensorProto.DataLocation
INT_ATTRIBUTE, FLOAT_ATTRIBUTE, TEXT_ATTRIBUTE, TENSOR_ATTRIBUTE, GRAPH_ATTRIBUTE, INTS_ATTRIBUTE = 2, 1, 3, 4, 5, 7
# The field that holds the value, by AttributeProto.AttributeType.
_VALUES = {
    FLOAT_ATTRIBUTE: "f", INT_ATTRIBUTE: "i", TEXT_ATTRIBUTE: "s", TENSOR_ATTRIBUTE: "t", GRAPH_ATTRIBUTE: "g",
    INTS_ATTRIBUTE: "ints",
}  # fmt: skip
LARGEST = 1 << 40  # every dimension, and every tensor's size in bytes, is below this
DEEPEST = 8  # graphs within graphs


@dataclass(frozen=True)
class Tensor:
    name: str
    type: int
    dims: tuple[int, ...]
    external: Mapping[str, str] | None  # key to value; None where the data lie in the graph
    data_bytes: int  # size of the content that lies in the graph
    content: memoryview | None = None  # raw data; None where they are external, or a list of numbers
    numbers: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Size of all elements in bytes."""
        return -(-math.prod(self.dims) * ELEMENT_BITS.get(self.type, 0) // 8)

    @property
    def integers(self) -> list[int] | None:
        """The elements of a tensor of integers that lie in the graph; None for any other."""
        if self.type not in (INT32, INT64) or self.external is not None:
            return None
        if self.content is None:
            return list(map(int, self.numbers))
        return memoryview(bytes(self.content)).cast("i" if self.type == INT32 else "q").tolist()


@dataclass(frozen=True)
class Value:
    """An input or output; dimensions are numbers or names, None where none are given."""

    name: str
    type: int
    dims: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Attribute:
    name: str
    type: int
    value: "int | float | str | tuple[int, ...] | Tensor | Graph | None"
    reference: str = ""  # the attribute of the function around it that the value is


@dataclass(frozen=True)
class Node:
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[Attribute, ...]

    @property
    def operator(self) -> tuple[str, str]:
        return self.domain, self.op_type

    def value(self, name: str) -> Any:
        """Value of the attribute `name`; None where it is absent."""
        return next((attribute.value for attribute in self.attributes if attribute.name == name), None)

    @property
    def graphs(self) -> "Iterator[Graph]":
        return (attribute.value for attribute in self.attributes if isinstance(attribute.value, Graph))


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Node, ...]
    initializers: tuple[Tensor, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def all_graphs(self) -> "Iterator[Graph]":
        """This graph, then the graphs in its nodes' attributes."""
        yield self
        for node in self.nodes:
            for graph in node.graphs:
                yield from graph.all_graphs()


@dataclass(frozen=True)
class Function:
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    opsets: tuple[tuple[str, int], ...]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class OnnxModel:
    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    graph: Graph
    functions: tuple[memoryview, ...]  # see `parse_function`
    metadata: Mapping[str, str]


def parse_model(content: bytes | memoryview) -> OnnxModel:
    """Parses an ONNX file. Raises MalformedError for any other content."""
    values = decode(memoryview(content), _MODEL)
    if "graph" not in values:
        raise MalformedError("it holds no graph")
    return OnnxModel(
        values.get("ir_version", 0), _opsets(values["opset_import"]), _graph(values["graph"]),
        tuple(values["functions"]), _pairs(values["metadata_props"], "metadata"),
    )  # fmt: skip


def parse_function(content: memoryview) -> Function:
    """Parses a function of a model. Raises MalformedError."""
    values = decode(content, _FUNCTION)
    return Function(
        values.get("domain", ""), values.get("name", ""), tuple(values["input"]), tuple(values["output"]),
        tuple(values["attribute"]), _opsets(values["opset_import"]), tuple(_node(node, 0) for node in values["node"]),
    )  # fmt: skip


def tensors(content: bytes | memoryview) -> Iterator[Tensor]:
    """The initializers of a model's graph and of the branches in it, in file order. Raises MalformedError."""
    graph = decode(memoryview(content), _MODEL).get("graph", memoryview(b""))
    return (tensor for each in _graph(graph).all_graphs() for tensor in each.initializers)


def embedded_bytes(content: bytes | memoryview) -> int:
    """Bytes of the tensors that lie in a model's graph and in branches of it, found without parsing anything else.

    Looks at a limited number of fields. Raises MalformedError.
    """
    return sum(itertools.islice(_raw_data(memoryview(content), _TO_GRAPH), _MOST_FIELDS))


_TO_GRAPH = (7,)  # numbers of the fields that lead from a model to its graph
_TO_TENSORS, _TO_BRANCHES = (5, 9), (1, 5, 6)  # from a graph to its tensors' data, and to the graphs in its nodes
_MOST_FIELDS = 1 << 20


def _raw_data(message: memoryview, path: tuple[int, ...], depth: int = 0) -> Iterator[int]:
    """Sizes of the raw data of all tensors of the graphs at the end of `path`, and 0 for every other field."""
    if path:
        for part in raw_fields(message):
            yield 0
            if part.number == path[0] and isinstance(part.value, memoryview):
                yield from _raw_data(part.value, path[1:], depth)
        return
    for part in raw_fields(message):
        yield 0
        if part.number == _TO_TENSORS[0] and isinstance(part.value, memoryview):
            for inner in raw_fields(part.value):
                is_data = inner.number == _TO_TENSORS[1] and isinstance(inner.value, memoryview)
                yield len(inner.value) if is_data and isinstance(inner.value, memoryview) else 0
        elif part.number == _TO_BRANCHES[0] and isinstance(part.value, memoryview) and depth < DEEPEST:
            yield from _raw_data(part.value, _TO_BRANCHES[1:], depth + 1)


def _repeated(name: str, kind: Kind = Kind.BYTES) -> Field:
    return Field(name, kind, repeated=True)


def _int(name: str) -> Field:
    return Field(name, Kind.INT)


def _text(name: str) -> Field:
    return Field(name, Kind.TEXT)


def _message(name: str) -> Field:
    return Field(name, Kind.BYTES)


_MODEL = Table({
    1: _int("ir_version"), 2: _text("producer_name"), 3: _text("producer_version"), 4: _text("domain"),
    5: _int("model_version"), 6: _text("doc_string"), 7: _message("graph"), 8: _repeated("opset_import"),
    14: _repeated("metadata_props"), 25: _repeated("functions"),
})  # fmt: skip
_OPSET = Table({1: _text("domain"), 2: _int("version")})
_FUNCTION = Table({
    1: _text("name"), 4: _repeated("input", Kind.TEXT), 5: _repeated("output", Kind.TEXT),
    6: _repeated("attribute", Kind.TEXT), 7: _repeated("node"), 8: _text("doc_string"), 9: _repeated("opset_import"),
    10: _text("domain"),
})  # fmt: skip
_GRAPH = Table({
    1: _repeated("node"), 2: _text("name"), 5: _repeated("initializer"), 10: _text("doc_string"),
    11: _repeated("input"), 12: _repeated("output"), 13: _repeated("value_info"),
})  # fmt: skip
_NODE = Table({
    1: _repeated("input", Kind.TEXT), 2: _repeated("output", Kind.TEXT), 3: _text("name"), 4: _text("op_type"),
    5: _repeated("attribute"), 6: _text("doc_string"), 7: _text("domain"),
})  # fmt: skip
_ATTRIBUTE = Table({
    1: _text("name"), 2: Field("f", Kind.FLOAT), 3: _int("i"), 4: _text("s"), 5: _message("t"), 6: _message("g"),
    8: _repeated("ints", Kind.INT), 13: _text("doc_string"), 20: _int("type"), 21: _text("ref_attr_name"),
})  # fmt: skip
_TENSOR = Table({
    1: _repeated("dims", Kind.INT), 2: _int("data_type"), 4: _repeated("float_data", Kind.FLOAT),
    5: _repeated("int32_data", Kind.INT), 7: _repeated("int64_data", Kind.INT), 8: _text("name"),
    9: _message("raw_data"), 12: _text("doc_string"), 13: _repeated("external_data"), 14: _int("data_location"),
})  # fmt: skip
_NUMBERS = {"float_data": (FLOAT,), "int32_data": (INT32, UINT8, BOOL, FLOAT16), "int64_data": (INT64,)}
_PAIR = Table({1: _text("key"), 2: _text("value")})
_VALUE = Table({1: _text("name"), 2: _message("type"), 3: _text("doc_string")})
_TYPE = Table({1: _message("tensor_type"), 6: _text("denotation")})
_TENSOR_TYPE = Table({1: _int("elem_type"), 2: _message("shape")})
_SHAPE = Table({1: _repeated("dim")})
_DIMENSION = Table({1: _int("dim_value"), 2: _text("dim_param"), 3: _text("denotation")})


def _opsets(messages: list[memoryview]) -> tuple[tuple[str, int], ...]:
    found = (decode(message, _OPSET) for message in messages)
    return tuple((values.get("domain", ""), values.get("version", 0)) for values in found)


def _graph(message: memoryview, depth: int = 0) -> Graph:
    if depth > DEEPEST:
        raise MalformedError(f"its graphs are nested deeper than {DEEPEST}")
    values = decode(message, _GRAPH)
    return Graph(
        tuple(_node(node, depth) for node in values["node"]), tuple(map(_tensor, values["initializer"])),
        tuple(map(_value, values["input"])), tuple(map(_value, values["output"])),
    )  # fmt: skip


def _node(message: memoryview, depth: int) -> Node:
    values = decode(message, _NODE)
    return Node(
        values.get("domain", ""), values.get("op_type", ""), tuple(values["input"]), tuple(values["output"]),
        tuple(_attribute(attribute, depth) for attribute in values["attribute"]),
    )  # fmt: skip


def _attribute(message: memoryview, depth: int) -> Attribute:
    values = decode(message, _ATTRIBUTE)
    name, type_, reference = values.get("name", ""), values.get("type", 0), values.get("ref_attr_name", "")
    given = {key for key in _VALUES.values() if values.get(key, []) != []}
    wanted = _VALUES.get(type_)
    if wanted is None or given - {wanted}:
        raise MalformedError(f"the attribute {name!a:.60} has a type that edgeblt does not write")
    if reference:
        if given:
            raise MalformedError(f"the attribute {name!a:.60} has both a value and a reference")
        return Attribute(name, type_, None, reference)
    value = values.get(wanted, {"f": 0.0, "i": 0, "s": ""}.get(wanted))
    if value is None:
        raise MalformedError(f"the attribute {name!a:.60} has no value")
    if wanted == "t":
        value = _tensor(value)
    elif wanted == "g":
        value = _graph(value, depth + 1)
    elif wanted == "ints":
        value = tuple(value)
    return Attribute(name, type_, value)


def _tensor(message: memoryview) -> Tensor:
    values = decode(message, _TENSOR)
    name, type_, dims = values.get("name", ""), values.get("data_type", 0), tuple(values["dims"])
    if type_ not in ELEMENT_BITS or len(dims) > 8 or not _is_size(dims):
        raise MalformedError(f"the tensor {name!a:.80} has the type {type_} and the shape {list(dims)!r:.80}")
    lists = [key for key in _NUMBERS if values[key]]
    raw = values.get("raw_data")
    external = _pairs(values["external_data"], name) if values.get("data_location", 0) == EXTERNAL else None
    if len(lists) + (raw is not None) > (external is None) or (external is None and values["external_data"]):
        raise MalformedError(f"the data of the tensor {name!a:.80} lie in two places")
    if any(type_ not in _NUMBERS[key] for key in lists):
        raise MalformedError(f"the tensor {name!a:.80} is a list of numbers of another type")
    numbers = tuple(values[lists[0]]) if lists else ()
    data_bytes = len(numbers) * ELEMENT_BITS[type_] // 8 if lists else len(raw or b"")
    return Tensor(name, type_, dims, external, data_bytes, raw, numbers)


def _is_size(dims: tuple[int, ...]) -> bool:
    total = 8
    for size in dims:
        if not 0 <= size < LARGEST:
            return False
        total *= max(size, 1)
    return total < LARGEST


def _pairs(messages: list[memoryview], name: str) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for message in messages:
        values = decode(message, _PAIR)
        if values.keys() != {"key", "value"} or values["key"] in pairs:
            raise MalformedError(f"the tensor {name!a:.80} says twice, or not at all, where its data lie")
        pairs[values["key"]] = values["value"]
    return MappingProxyType(pairs)


def _value(message: memoryview) -> Value:
    values = decode(message, _VALUE)
    type_ = decode(values.get("type", memoryview(b"")), _TYPE)
    if "tensor_type" not in type_:
        return Value(values.get("name", ""), 0, None)
    tensor = decode(type_["tensor_type"], _TENSOR_TYPE)
    dims = None
    if "shape" in tensor:
        dims = tuple(map(_dimension, decode(tensor["shape"], _SHAPE)["dim"]))
    return Value(values.get("name", ""), tensor.get("elem_type", 0), dims)


def _dimension(message: memoryview) -> int | str:
    values = decode(message, _DIMENSION)
    if "dim_value" in values and "dim_param" in values:
        raise MalformedError("a dimension is both a number and a name")
    size: int | str = values.get("dim_value", values.get("dim_param", ""))
    return size
