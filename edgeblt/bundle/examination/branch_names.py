"""Unique names for the values in a graph's branches.

ONNX Runtime puts the nodes of a function in place of its call and numbers their values for each graph on its own, so
that a branch may define a name that the graph around it has too. It computes so, but does not open what it saved.
"""

import itertools
from collections.abc import Iterator, Mapping

from edgeblt.bundle.examination.protobuf import field, raw_fields

# By message, the fields that hold messages, and those that hold names of values.
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value"},
    "node": {5: "attribute"},
    "attribute": {6: "graph"},
}
_NAMES: Mapping[str, tuple[int, ...]] = {"node": (1, 2), "tensor": (8,), "value": (1,)}
_NODE, _INITIALIZER, _OUTPUT, _TENSOR_NAME = 1, 5, 2, 8


def with_unique_branch_names(content: bytes) -> bytes:
    """The ONNX file with a number before every name that a branch defines; raises MalformedError for another file."""
    return _Renamer().rewritten(memoryview(content), "model", {})


class _Renamer:
    def __init__(self) -> None:
        self._branches = itertools.count()

    def rewritten(self, message: memoryview, kind: str, names: Mapping[bytes, bytes]) -> bytes:
        """The message, in which `names` have new ones."""
        parts: list[bytes | memoryview] = []
        for number, _, content, start, end in raw_fields(message):
            inner = _MESSAGES.get(kind, {}).get(number)
            if inner and isinstance(content, memoryview):
                known = self._with_own_names(content, names) if kind == "attribute" else names
                parts.append(field(number, self.rewritten(content, inner, known)))
            elif number in _NAMES.get(kind, ()) and isinstance(content, memoryview):
                name = bytes(content)
                parts.append(field(number, names.get(name, name)))
            else:
                parts.append(message[start:end])
        return b"".join(parts)

    def _with_own_names(self, branch: memoryview, names: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
        number = next(self._branches)
        return {**names, **{name: b"branch_%d_%s" % (number, name) for name in _defined(branch)}}


def _defined(graph: memoryview) -> Iterator[bytes]:
    """Names of a graph's initializers and of its nodes' outputs."""
    for number, _, content, _, _ in raw_fields(graph):
        wanted = {_NODE: _OUTPUT, _INITIALIZER: _TENSOR_NAME}.get(number)
        if wanted and isinstance(content, memoryview):
            for inner in raw_fields(content):
                if inner.number == wanted and isinstance(inner.value, memoryview) and inner.value:
                    yield bytes(inner.value)
