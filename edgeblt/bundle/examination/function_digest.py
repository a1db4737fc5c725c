"""Digest of a function's body, independent of the names of its values and nodes."""

import functools
import hashlib

from edgeblt.bundle.examination.onnx_graph import Attribute, Function, Graph, Node, Tensor, parse_function


@functools.lru_cache(maxsize=64)
def digest(content: bytes) -> tuple[tuple[str, str], str]:
    """Domain and name of a serialized function, and the 16-digit digest of its body. Raises MalformedError."""
    function = parse_function(memoryview(content))
    return (function.domain, function.name), _Canon().of(function)


class _Canon:
    """Canonical form of a function: values are numbered in the order in which they first appear."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {"": 0}

    def of(self, function: Function) -> str:
        parts = [
            (function.domain, function.name), self._values(function.inputs), function.attributes,
            sorted(function.opsets), self._nodes(function.nodes), self._values(function.outputs),
        ]  # fmt: skip
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _nodes(self, nodes: tuple[Node, ...]) -> list[object]:
        return [
            (node.operator, self._values(node.inputs), sorted(map(self._attribute, node.attributes), key=str),
             self._values(node.outputs)) for node in nodes
        ]  # fmt: skip

    def _attribute(self, attribute: Attribute) -> object:
        value: object = attribute.value
        if isinstance(value, Tensor):
            content = None if value.content is None else bytes(value.content)
            value = value.type, value.dims, content, value.numbers, value.external
        elif isinstance(value, Graph):
            value = self._graph(value)
        return attribute.name, attribute.type, value, attribute.reference

    def _graph(self, graph: Graph) -> object:
        outer = [len(graph.initializers), self._values(tuple(value.name for value in graph.inputs))]
        return outer, self._nodes(graph.nodes), self._values(tuple(value.name for value in graph.outputs))

    def _values(self, names: tuple[str, ...]) -> list[int]:
        return [self._numbers.setdefault(name, len(self._numbers)) for name in names]
