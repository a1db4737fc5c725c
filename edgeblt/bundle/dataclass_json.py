"""Parses JSON documents into frozen dataclasses, strictly: unknown, missing and mistyped fields are errors."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, TypeVar

from edgeblt.errors import EdgebltError, shown

T = TypeVar("T")
_MOST_BITS = 64
LATER = {"later": True}
"""The metadata of a field that earlier versions did not have: with its default it is left out of documents."""


def parse_dataclass(cls: type[T], document: object, where: str, types: Mapping[str, type[Any]] | None = None) -> T:
    """`document` (parsed JSON) as a `cls`, field by field, by its type hints.

    A field's JSON name is its own without a trailing underscore (`global_` reads `global`). `where` names the
    document in errors; `types` replaces the hints of some fields. Raises EdgebltError.
    """
    if not isinstance(document, dict):
        raise EdgebltError(f"{where} must be a JSON object, not {shown(document)}; write it again with edgeblt")
    hints = typing.get_type_hints(cls) | dict(types or {})
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in document:
        if name not in fields:
            raise EdgebltError(f"{where} has the unknown field {shown(name)}; this version knows {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in document:
            values[field.name] = _value(hints[field.name], document[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise EdgebltError(f"{where} lacks the field {name!r}; write it again with edgeblt")
    try:
        return cls(**values)
    except EdgebltError as error:
        raise EdgebltError(f"{where}: {error}") from None


def dataclass_document(value: object) -> Any:
    """The inverse of `parse_dataclass`: plain JSON types, in field order."""
    if dataclasses.is_dataclass(value):
        fields = [
            f for f in dataclasses.fields(value) if "later" not in f.metadata or getattr(value, f.name) != f.default
        ]
        return {f.name.rstrip("_"): dataclass_document(getattr(value, f.name)) for f in fields}
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, dict):
        return {key: dataclass_document(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [dataclass_document(item) for item in value]
    return value


def _value(hint: Any, value: object, where: str) -> Any:
    if hint is int and type(value) is int and value.bit_length() > _MOST_BITS:
        raise EdgebltError(f"{where} is {shown(value)}; it must be a number of at most {_MOST_BITS} bits")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        return _value(_fitting([a for a in arguments if a is not type(None)], value), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{repr(key)[1:-1]:.60}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return parse_dataclass(typing.cast("type[object]", hint), value, where)
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        if isinstance(value, str) and value.upper() in hint.__members__:
            return hint[value.upper()]
        known = ", ".join(name.lower() for name in hint.__members__)
        raise EdgebltError(f"{where} is {shown(value)}; it must be one of {known}")
    if hint is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:  # `type` and not isinstance: true is no integer
        return value
    raise EdgebltError(f"{where} is {shown(value)}; it must be of type {getattr(hint, '__name__', hint)}")


def _fitting(choices: list[Any], value: object) -> Any:
    """The first of a union's types, or the first that is a dataclass with all fields of the document."""
    fields = {
        choice: {field.name.rstrip("_") for field in dataclasses.fields(choice)}
        for choice in choices
        if dataclasses.is_dataclass(choice)
    }
    known = value.keys() if isinstance(value, dict) else set()
    return next((choice for choice, names in fields.items() if known <= names), choices[0])
