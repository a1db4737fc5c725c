"""Protobuf's wire format, read strictly: one message, one meaning.

A parser of protobuf's own takes the last of repeated singular fields, merges repeated messages, and skips what it does
not know. Whoever checks a file by other rules than its later reader can be made to see another content. So a message
is read by a table of its fields here, and what could be read in two ways is refused: a field that the table lacks, of
another type, or given twice where the table has it once. Nothing is copied: contents are slices of the message.

Source of the encoding: protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

_LONGEST_VARINT = 10  # bytes
_LONGEST_LIST = 1 << 16  # bytes, of numbers that are written one by one
_TWO_63, _TWO_64 = 1 << 63, 1 << 64
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types; groups, 3 and 4, are refused


class MalformedError(ValueError):
    """Malformed protobuf message; the text says why, in words that can follow "because"."""


class Kind(Enum):
    """Type of a field's content."""

    INT = "int"  # int64, int32 and enumerations
    FLOAT = "float"  # float32
    TEXT = "text"  # UTF-8
    BYTES = "bytes"  # raw bytes, or a message that a table of its own reads


@dataclass(frozen=True)
class Field:
    name: str
    kind: Kind
    repeated: bool = False


class RawField(NamedTuple):
    """A field of a message: its content (an int for a varint), and the place of the whole field."""

    number: int
    wire_type: int
    value: int | memoryview
    start: int
    end: int


class Table:
    """The fields of a message, by number."""

    def __init__(self, fields: Mapping[int, Field]) -> None:
        self.fields = fields
        self.repeated = tuple(field.name for field in fields.values() if field.repeated)
        self.by_tag = {tag: field for number, field in fields.items() for tag in _tags(number, field)}


def _tags(number: int, field: Field) -> Iterator[int]:
    """Field numbers and wire types that are accepted; repeated numbers may also be packed into one field."""
    yield number << 3 | {Kind.INT: _VARINT, Kind.FLOAT: _FIXED32}.get(field.kind, _LENGTH)
    if field.repeated and field.kind in (Kind.INT, Kind.FLOAT):
        yield number << 3 | _LENGTH


def decode(message: memoryview, table: Table) -> dict[str, Any]:
    """The message's fields by name, lists for repeated fields; absent fields are left out, absent lists are empty.

    Raises MalformedError for anything but one field of the table after another.
    """
    values: dict[str, Any] = {name: [] for name in table.repeated}
    place, size, by_tag = 0, len(message), table.by_tag
    while place < size:
        tag, place = read_varint(message, place)
        field = by_tag.get(tag)
        if field is None:
            raise _unknown(tag, table)
        wire_type = tag & 7
        value: int | memoryview
        if wire_type == _VARINT:
            value, place = read_varint(message, place)
        else:
            length = 4
            if wire_type == _LENGTH:
                length, place = read_varint(message, place)
            if place + length > size:
                raise MalformedError("it ends within a field")
            value = message[place : place + length]
            place += length
        if field.repeated:
            values[field.name] += _several(field, wire_type, value)
        elif field.name in values:
            raise MalformedError(f"its field {field.name} is listed twice")
        else:
            values[field.name] = _single(field, value)
    return values


def _unknown(tag: int, table: Table) -> MalformedError:
    field = table.fields.get(tag >> 3)
    if field is not None:
        return MalformedError(f"its field {field.name} is of the wrong type")
    return MalformedError(f"a field has the number {tag >> 3}, which edgeblt writes nowhere")


def raw_fields(message: memoryview) -> Iterator[RawField]:
    """Every field of a message in order. Raises MalformedError for a truncated message and for other content."""
    place, size = 0, len(message)
    while place < size:
        start = place
        tag, place = read_varint(message, place)
        wire_type, content = tag & 7, place
        if not 0 < tag < 1 << 32 or not tag >> 3:
            raise MalformedError("a field has an impossible number")
        value: int | memoryview
        if wire_type == _VARINT:
            value, place = read_varint(message, place)
        else:
            if wire_type == _LENGTH:
                length, content = read_varint(message, place)
            elif wire_type in (_FIXED64, _FIXED32):
                length = 8 if wire_type == _FIXED64 else 4
            else:
                raise MalformedError(f"a field is of the unknown kind {wire_type}")
            place = content + length
            if place > size:
                raise MalformedError("it ends within a field")
            value = message[content:place]
        yield RawField(tag >> 3, wire_type, value, start, place)


def read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """Reads a number below 2**64 in groups of seven bits, lowest first; returns it and the place after it."""
    try:
        byte = message[place]
        if byte < 0x80:  # the most frequent case by far
            return byte, place + 1
        value, shift = byte & 0x7F, 7
        for index in range(place + 1, place + _LONGEST_VARINT):
            byte = message[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= _TWO_64:
                    break
                return value, index + 1
            shift += 7
    except IndexError:
        raise MalformedError("it ends within a number") from None
    raise MalformedError("a number has more than 64 bits")


def varint(value: int) -> bytes:
    """The inverse of `read_varint`."""
    groups = []
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def field(number: int, content: bytes) -> bytes:
    """Encoding of a field that holds bytes, text or a message."""
    return varint(number << 3 | _LENGTH) + varint(len(content)) + content


def _single(field: Field, value: int | memoryview) -> Any:
    """The content of a field of the right wire type."""
    if isinstance(value, int):
        return value - _TWO_64 if value >= _TWO_63 else value
    if field.kind is Kind.TEXT:
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            raise MalformedError(f"its field {field.name} is no UTF-8") from None
    return struct.unpack("<f", value)[0] if field.kind is Kind.FLOAT else value


def _several(field: Field, wire_type: int, value: int | memoryview) -> list[Any]:
    """Elements of a repeated field: one element, or many packed numbers."""
    if isinstance(value, int) or wire_type != _LENGTH or field.kind in (Kind.TEXT, Kind.BYTES):
        return [_single(field, value)]
    if len(value) > _LONGEST_LIST:
        raise MalformedError(f"its field {field.name} has more than {_LONGEST_LIST} bytes")
    if field.kind is Kind.INT:
        return list(_packed_ints(value))
    if len(value) % 4:
        raise MalformedError(f"its field {field.name} ends within a number")
    return list(struct.unpack(f"<{len(value) // 4}f", value))


def _packed_ints(content: memoryview) -> Iterator[int]:
    place = 0
    while place < len(content):
        value, place = read_varint(content, place)
        yield value - _TWO_64 if value >= _TWO_63 else value
