"""The tensors an ONNX graph holds or refers to, by name, shape and size, without the onnx package.

Reads just the fields that say so: ModelProto.graph (7), GraphProto.initializer (5), TensorProto.dims (1), data_type (2)
and name (8). Source of the numbers: onnx.proto; of the encoding: protobuf's wire format.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from edgeblt.errors import EdgebltError
from edgeblt.held_files import unreadable
from edgeblt.roofline import StoredTensor

# Bytes of an element by TensorProto.DataType.
_ELEMENT_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
_LONGEST_VARINT = 10


def initializers(path: Path, prefix: str) -> list[StoredTensor]:
    """The initializers whose names start with `prefix`, in file order. Raises EdgebltError if it is no such graph."""
    try:
        return list(_initializers(memoryview(path.read_bytes()), prefix))
    except OSError as error:
        raise unreadable(path, error, "copy the bundle again") from None
    except _MalformedError as error:
        raise EdgebltError(f"{path} is no ONNX graph ({error}); export the bundle again") from None


class _MalformedError(ValueError):
    pass


def _initializers(model: memoryview, prefix: str) -> Iterator[StoredTensor]:
    for number, graph in _fields(model):
        if number == 7 and isinstance(graph, memoryview):
            for inner, tensor in _fields(graph):
                if inner == 5 and isinstance(tensor, memoryview):
                    name, dims, dtype = _tensor(tensor)
                    if name.startswith(prefix):
                        yield _stored(name, dims, dtype)


def _tensor(tensor: memoryview) -> tuple[str, list[int], int]:
    name, dims, dtype = "", list[int](), 0
    for number, value in _fields(tensor):
        if number == 1:  # packed, as protobuf libraries write it, or one by one
            dims += _varints(value) if isinstance(value, memoryview) else [value]
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 8 and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
    return name, dims, dtype


def _stored(name: str, dims: list[int], dtype: int) -> StoredTensor:
    if dtype not in _ELEMENT_BYTES or not dims or not all(0 < size < 1 << 40 for size in dims):
        raise _MalformedError(f"{name!a:.80} has the type {dtype} and the shape {dims!r:.80}")
    return StoredTensor(name, dims[0], math.prod(dims) * _ELEMENT_BYTES[dtype])


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field of a message."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        value: int | memoryview
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 2, 5):  # 8 bytes, as many as it says, 4 bytes
            length, place = _varint(data, place) if kind == 2 else (8 if kind == 1 else 4, place)
            value, place = data[place : place + length], place + length
        else:
            raise _MalformedError(f"a field is of the unknown kind {kind}")
        if place > len(data):
            raise _MalformedError("it ends within a field")
        yield key >> 3, value


def _varints(data: memoryview) -> list[int]:
    values, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        values.append(value)
    return values


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place after it."""
    value = 0
    for index, byte in enumerate(data[place : place + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, place + index + 1
    raise _MalformedError("it ends within a number")
